"""The native API of the audit log: `/api/audit`, for admins."""

from typing import Annotated, Any

from litestar import Router, get
from litestar.params import FromQuery, QueryParameter

from signoff.core.audit import AuditFilter, entry_as_json
from signoff.doors.dependencies import InjectedCaller, InjectedServices
from signoff.doors.http import INTS
from signoff.doors.usage import parse_microseconds
from signoff.work.admin.audit import list_audit

MAX_PAGE = 1000


@get("/", summary="List changes of the configuration")
async def get_audit(  # noqa: PLR0913 -- Litestar passes each query parameter by its name
    services: InjectedServices,
    caller: InjectedCaller,
    *,
    actor: FromQuery[str | None] = None,
    subject: FromQuery[str | None] = None,
    action: FromQuery[str | None] = None,
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    after: Annotated[int | None, QueryParameter(ge=1, lt=INTS)] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 50,
) -> dict[str, Any]:
    """Return a page of the audit log, newest first, for admins. Pass `next` as `after` to get the next page.

    `since` and `until` are times (ISO 8601, UTC unless they have a zone); entries are from `since` on and before
    `until`.
    """
    filters = AuditFilter(
        actor=actor,
        subject=subject,
        action=action,
        since=None if since is None else parse_microseconds("since", since),
        until=None if until is None else parse_microseconds("until", until),
        after_id=after,
        limit=limit,
    )
    entries = await list_audit(services, caller, filters)
    next_id = entries[-1].id if len(entries) == limit else None
    return {"data": [entry_as_json(entry) for entry in entries], "next": next_id}


router = Router("/api/audit", route_handlers=[get_audit], tags=["audit"])
