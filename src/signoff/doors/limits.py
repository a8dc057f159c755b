"""The native door to limits: `/api/limits`; admins set them, everybody sees their own."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Router, delete, get, put
from litestar.params import FromPath, FromQuery

from signoff.core.access import check_admin
from signoff.core.price import NANO, dollars, nanodollars
from signoff.doors.http import InjectedCaller, InjectedServices
from signoff.errors import BadRequest
from signoff.work.admin.limits import (
    COSTS,
    COUNTS,
    LimitStatus,
    get_limit,
    limit_for,
    limit_subject,
    list_limits,
    remove_limit,
    set_limit,
)


class LimitDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a limit is to be; None: as much as they like. Costs are dollars, as decimal text."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    cost_per_day: str | None = None
    cost_per_month: str | None = None


@get("/", summary="List limits, and what is used of them")
async def listed(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Every limit for an admin, else those for the caller; and who that is."""
    you = {"user": caller.email, "token": caller.token_id}
    return {"data": [_as_seen(one) for one in await list_limits(services, caller)], "you": you}


@put("/{who:str}", summary="Set a limit")
async def changed(
    request: Request[Any, Any, Any],
    services: InjectedServices,
    caller: InjectedCaller,
    who: FromPath[str],
    model: FromQuery[str | None] = None,
) -> dict[str, Any]:
    """The limit, which every process knows within a second, in the place of the one that was there."""
    check_admin(caller)
    try:
        given = msgspec.json.decode(await request.body(), type=LimitDescription)
        costs = {name: None if (cost := getattr(given, name)) is None else nanodollars(cost) for name in COSTS}
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"This is not a limit: {error}") from None
    limit = await limit_for(services, who, model)
    await set_limit(services, caller, msgspec.structs.replace(limit, **(msgspec.structs.asdict(given) | costs)))
    return _as_seen(await get_limit(services, caller, who, model))


@delete("/{who:str}", status_code=204, summary="Remove a limit")
async def removed(
    services: InjectedServices, caller: InjectedCaller, who: FromPath[str], model: FromQuery[str | None] = None
) -> None:
    """They may use as much as they like."""
    await remove_limit(services, caller, who, model)


def _as_seen(one: LimitStatus) -> dict[str, Any]:
    limit, used = one.limit, one.used
    told: dict[str, Any] = {name: getattr(limit, name) for name in COUNTS}
    told |= {name: None if (cost := getattr(limit, name)) is None else dollars(cost, NANO) for name in COSTS}
    counted = used and {
        "requests_per_minute": sum(entry.requests for entry in used.entries),
        "tokens_per_minute": sum(entry.tokens for entry in used.entries),
        "parallel": len(used.pending),
        "tokens_per_day": used.day.tokens,
        "tokens_per_month": used.month.tokens,
        "cost_per_day": dollars(used.day.cost, NANO),
        "cost_per_month": dollars(used.month.cost, NANO),
    }
    return {"who": limit_subject(limit), "model": limit.model} | told | {"used": counted}


router = Router("/api/limits", route_handlers=[listed, changed, removed], tags=["limits"])
