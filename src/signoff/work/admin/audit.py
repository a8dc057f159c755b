"""The audit log: reading it, and recording the settings of a starting process. Changes of rows record themselves."""

from typing import Any, Literal

from signoff.core.access import Caller, check_admin
from signoff.core.audit import AuditEntry, AuditFilter
from signoff.errors import Forbidden
from signoff.work.services import Services


async def list_audit(services: Services, caller: Caller, filters: AuditFilter) -> list[AuditEntry]:
    """Return a page of the audit log for an admin with a token, newest first. Raises Forbidden."""
    if caller.is_anonymous:
        raise Forbidden("The audit log needs a token or a session of an admin; `anonymous_role` does not cover it.")
    check_admin(caller)
    return await services.store.audit.page(filters)


async def record_settings(services: Services, program: Literal["serve", "work"], settings: dict[str, Any]) -> None:
    """Record the settings, which have no secrets, unless `program` started with equal ones the last time."""
    await services.store.audit.record_settings(f"settings:{program}", settings)
