"""The page of the audit log: who changed what, newest first."""

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import MediaType, Router, get
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.audit import AuditEntry, AuditFilter
from signoff.core.price import MICRO, NANO, dollars
from signoff.core.wire import format_time
from signoff.dashboard.shell import AUDIT, page
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import parse_digits
from signoff.work.admin.audit import list_audit

MAX_LISTED = 50
MAX_VALUE = 200
_NOUNS = ("limit", "model", "policy", "price", "prompt", "pipeline", "stream")
# Actions to choose from; the field takes any other one too.
ACTIONS = [
    *(f"{noun} {verb}" for noun in _NOUNS for verb in ("created", "changed", "removed")),
    *("user created", "user changed", "user erased", "token created", "token revoked"),
]
_TIMES = ("_at", "valid_from")
# Amounts of money by what they belong to, and what a dollar has of their unit.
_AMOUNTS: dict[str, dict[str, int]] = {
    "limit": {"cost_per_day": NANO, "cost_per_month": NANO},
    "price": {"input": MICRO, "output": MICRO, "cached_input": MICRO, "request": MICRO},
}


@get("/dashboard/audit", include_in_schema=False, media_type=MediaType.HTML)
async def show_audit(  # noqa: PLR0913 -- one parameter for each part of the address
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    *,
    actor: FromQuery[str] = "",
    subject: FromQuery[str] = "",
    action: FromQuery[str] = "",
    after: FromQuery[str] = "",
) -> Template:
    """Show a page of the audit log, for an admin."""
    filters = AuditFilter(
        actor=actor.strip() or None,
        subject=subject.strip() or None,
        action=action.strip().replace(" ", "_") or None,
        after_id=parse_digits(after),
        limit=MAX_LISTED,
    )
    entries = await list_audit(services, caller, filters)
    return page(
        request,
        services,
        caller,
        "audit.html",
        AUDIT.name,
        entries=[{"entry": entry, "changes": _changes(entry)} for entry in entries],
        actor=actor,
        subject=subject,
        action=action,
        actions=ACTIONS,
        next_id=entries[-1].id if len(entries) == MAX_LISTED else None,
    )


def _changes(entry: AuditEntry) -> list[tuple[str, str, str]]:
    """Return the members that differ: name, value before, value after; an empty text where there was none."""
    before, after = entry.before or {}, entry.after or {}
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    units = _AMOUNTS.get(entry.subject.partition(":")[0], {})

    def text(name: str, members: Mapping[str, Any]) -> str:
        return _text(name, members.get(name), units.get(name))

    return [(name, text(name, before), text(name, after)) for name in names]


def _text(name: str, value: Any, unit: int | None) -> str:
    """Return a value as text; a time as a date, and an amount, of which a dollar has `unit`, in dollars."""
    if value is None:
        return ""
    if unit is not None:
        return f"${dollars(value, unit)}"
    if name.endswith(_TIMES) and isinstance(value, int):
        return format_time(value)[:19].replace("T", " ")
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"


router = Router("/", route_handlers=[show_audit])
