"""The native door to limits: `/api/limits`; admins set them, everybody sees their own."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Router, delete, get, put
from litestar.params import FromPath, FromQuery

from signoff.core.access import check_admin
from signoff.core.price import NANO, dollars, nanodollars
from signoff.doors.http import TheCaller, TheDesk
from signoff.errors import BadRequest
from signoff.work.admin.limits import (
    COSTS,
    COUNTS,
    Allowed,
    limit_for,
    look_at_limit,
    look_at_limits,
    remove_limit,
    set_limit,
    whose,
)


class Described(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a limit is to be; None: as much as they like. Costs are dollars, as decimal text."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    cost_per_day: str | None = None
    cost_per_month: str | None = None


@get("/", summary="List limits, and what is used of them")
async def listed(desk: TheDesk, caller: TheCaller) -> dict[str, Any]:
    """Every limit for an admin, else those for the caller; and who that is."""
    you = {"user": caller.email, "token": caller.token_id}
    return {"data": [_as_seen(one) for one in await look_at_limits(desk, caller)], "you": you}


@put("/{who:str}", summary="Set a limit")
async def changed(
    request: Request[Any, Any, Any],
    desk: TheDesk,
    caller: TheCaller,
    who: FromPath[str],
    model: FromQuery[str | None] = None,
) -> dict[str, Any]:
    """The limit, which every process knows within a second, in the place of the one that was there."""
    check_admin(caller)
    try:
        given = msgspec.json.decode(await request.body(), type=Described)
        costs = {name: None if (cost := getattr(given, name)) is None else nanodollars(cost) for name in COSTS}
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"This is not a limit: {error}") from None
    limit = await limit_for(desk, who, model)
    await set_limit(desk, caller, msgspec.structs.replace(limit, **(msgspec.structs.asdict(given) | costs)))
    return _as_seen(await look_at_limit(desk, caller, who, model))


@delete("/{who:str}", status_code=204, summary="Remove a limit")
async def removed(desk: TheDesk, caller: TheCaller, who: FromPath[str], model: FromQuery[str | None] = None) -> None:
    """They may use as much as they like."""
    await remove_limit(desk, caller, who, model)


def _as_seen(one: Allowed) -> dict[str, Any]:
    limit, used = one.limit, one.used
    told: dict[str, Any] = {name: getattr(limit, name) for name in COUNTS}
    told |= {name: None if (cost := getattr(limit, name)) is None else dollars(cost, NANO) for name in COSTS}
    counted = used and {
        "requests_per_minute": sum(entry.requests for entry in used.entries),
        "tokens_per_minute": sum(entry.tokens for entry in used.entries),
        "parallel": len(used.holds),
        "tokens_per_day": used.day.tokens,
        "tokens_per_month": used.month.tokens,
        "cost_per_day": dollars(used.day.cost, NANO),
        "cost_per_month": dollars(used.month.cost, NANO),
    }
    return {"who": whose(limit), "model": limit.model} | told | {"used": counted}


router = Router("/api/limits", route_handlers=[listed, changed, removed], tags=["limits"])
