"""The native API of limits: `/api/limits`; admins set them, every user sees their own."""

from typing import Any

import msgspec
from litestar import Router, delete, get, put
from litestar.params import FromPath, FromQuery

from signoff.core.access import Caller, check_admin
from signoff.core.price import NANO, dollars, nanodollars
from signoff.core.refusals import RefusalCount
from signoff.core.wire import format_time
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import parse_json
from signoff.errors import BadRequest
from signoff.work.admin.limits import (
    COSTS,
    COUNTS,
    LimitStatus,
    get_limit,
    limit_for,
    limit_subject,
    list_limits,
    list_refusals,
    remove_limit,
    set_limit,
)
from signoff.work.services import Services


class LimitDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `PUT /api/limits/{who}`; None stands for no limit. Days and months are those of UTC."""

    requests_per_minute: int | None = None
    """Requests in any 60 seconds."""
    tokens_per_minute: int | None = None
    """Tokens in any 60 seconds."""
    parallel: int | None = None
    """Requests at the same time."""
    tokens_per_day: int | None = None
    """Tokens in a day."""
    tokens_per_month: int | None = None
    """Tokens in a month."""
    cost_per_day: str | None = None
    """Dollars in a day, as decimal text."""
    cost_per_month: str | None = None
    """Dollars in a month, as decimal text."""


@get("/", summary="List limits and their usage")
async def get_limits(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return all limits (for admins), or those that apply to the caller; `you` identifies the caller."""
    you = {"user": caller.email, "token": caller.token_id}
    return {"data": [_limit_json(status) for status in await list_limits(services, caller)], "you": you}


@put("/{who:str}", summary="Set a limit")
async def put_limit(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    who: FromPath[str],
    model: FromQuery[str | None] = None,
) -> dict[str, Any]:
    """Set the limit of a subject and a model, in place of an earlier one; all processes apply it within a second."""
    description = parse_json(await request.body(), LimitDescription, "limit")
    return _limit_json(await save_limit(services, caller, who, model, description))


async def save_limit(
    services: Services, caller: Caller, who: str, model: str | None, description: LimitDescription
) -> LimitStatus:
    """Set the limit of a subject and a model, and return it with its usage. Raises Forbidden, NotFound, BadRequest."""
    check_admin(caller)
    values = msgspec.structs.asdict(description)
    for name in COSTS:
        try:
            values[name] = None if values[name] is None else nanodollars(values[name])
        except ValueError as error:
            raise BadRequest(f"`{name}` is not valid: {error}") from None
    limit = await limit_for(services, who, model)
    await set_limit(services, caller, msgspec.structs.replace(limit, **values))
    return await get_limit(services, caller, who, model)


@delete("/{who:str}", status_code=204, summary="Remove a limit")
async def delete_limit(
    services: InjectedServices, caller: InjectedCaller, who: FromPath[str], model: FromQuery[str | None] = None
) -> None:
    """Remove the limit."""
    await remove_limit(services, caller, who, model)


@get("/refusals", summary="List what limits have refused")
async def get_refusals(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return how often each limit refused a request of each token, or made a queued job wait, in the last seven days.

    Admins get those of all users, others their own. The hour is that of the last refusal.
    """
    return {"data": [_refusal_json(each) for each in await list_refusals(services, caller)]}


def _refusal_json(refusal: RefusalCount) -> dict[str, Any]:
    return {
        "limit": refusal.limit_name,
        "kind": refusal.kind,
        "user": refusal.email,
        "token": refusal.token_id,
        "refused": refusal.refused,
        "hour": format_time(refusal.hour),
    }


def _limit_json(status: LimitStatus) -> dict[str, Any]:
    limit, used = status.limit, status.used
    values: dict[str, Any] = {name: getattr(limit, name) for name in COUNTS}
    values |= {name: None if (cost := getattr(limit, name)) is None else dollars(cost, NANO) for name in COSTS}
    usage = used and {
        "requests_per_minute": used.requests,
        "tokens_per_minute": used.tokens,
        "parallel": len(used.pending),
        "tokens_per_day": used.day.tokens,
        "tokens_per_month": used.month.tokens,
        "cost_per_day": dollars(used.day.cost, NANO),
        "cost_per_month": dollars(used.month.cost, NANO),
    }
    return {"who": limit_subject(limit), "model": limit.model} | values | {"used": usage}


router = Router("/api/limits", route_handlers=[get_limits, get_refusals, put_limit, delete_limit], tags=["limits"])
