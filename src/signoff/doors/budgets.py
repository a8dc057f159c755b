"""The native API of error budgets: `/api/policies/{name}/budget`, `…/planted` and `…/catch-rates`, for admins."""

from typing import Annotated, Any

import msgspec
from litestar import Router, delete, get, post
from litestar.params import FromPath, FromQuery, QueryParameter

from signoff.core.api_paths import CHAT
from signoff.core.reviews.planted import PlantedItem
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import INTS, parse_json
from signoff.work.reviews.budget_report import (
    drop_planted,
    list_catch_rates,
    list_groups,
    list_planted,
    plant_item,
    report_budget,
    restart_budget,
)

MAX_PAGE = 1000
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]


class NewPlantedItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/policies/{name}/planted`."""

    payload: msgspec.Raw
    """Request, as a model would get it."""
    response: msgspec.Raw
    """Answer that is known to be wrong."""
    path: str = CHAT
    """Endpoint of the request."""


@get("/{name:str}/budget", summary="Show an error budget")
async def get_budget(
    services: InjectedServices,
    caller: InjectedCaller,
    name: FromPath[str],
    group: FromQuery[str | None] = None,
    after: FromQuery[str | None] = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Return the figures of the current period, or a page of the figures of each group, for admins."""
    groups = None if group is not None else await list_groups(services, caller, name, after=after, limit=limit)
    return msgspec.to_builtins(groups or await report_budget(services, caller, name, group))


@post("/{name:str}/budget/restart", status_code=200, summary="Start a new period of an error budget")
async def post_restart(
    services: InjectedServices, caller: InjectedCaller, name: FromPath[str], group: FromQuery[str | None] = None
) -> dict[str, Any]:
    """Start a new period on the same terms, for one group or for all, for admins; the audit log records it.

    Return the figures of the new period; for all groups of a budget by group, the list of groups instead.
    """
    await restart_budget(services, caller, name, group)
    groups = None if group is not None else await list_groups(services, caller, name, after=None, limit=1)
    return msgspec.to_builtins(groups or await report_budget(services, caller, name, group))


@get("/{name:str}/catch-rates", summary="Show what reviewers catch of planted items")
async def get_catch_rates(services: InjectedServices, caller: InjectedCaller, name: FromPath[str]) -> dict[str, Any]:
    """Return the planted items that each reviewer has judged and caught, with an interval of 95 %, for admins."""
    return {"data": [msgspec.structs.asdict(each) for each in await list_catch_rates(services, caller, name)]}


@get("/{name:str}/planted", summary="List planted items")
async def get_planted(
    services: InjectedServices,
    caller: InjectedCaller,
    name: FromPath[str],
    after: Annotated[int, QueryParameter(ge=0, lt=INTS)] = 0,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Return a page of the planted items of a policy, for admins. Pass `next` as `after` to get the next page."""
    items = await list_planted(services, caller, name, after_id=after, limit=limit)
    next_id = items[-1].id if len(items) == limit else None
    return {"data": [_item_json(item) for item in items], "next": next_id}


@post("/{name:str}/planted", status_code=201, summary="Add a planted item")
async def post_planted(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> dict[str, Any]:
    """Add an answer that is known to be wrong to those that are mixed into the desk, for admins."""
    new = parse_json(await request.body(), NewPlantedItem, "planted item")
    item = PlantedItem(policy=name, path=new.path, body=bytes(new.payload), response=bytes(new.response))
    return _item_json(await plant_item(services, caller, item))


@delete("/{name:str}/planted/{item_id:int}", status_code=204, summary="Remove a planted item")
async def delete_planted(
    services: InjectedServices, caller: InjectedCaller, name: FromPath[str], item_id: FromPath[int]
) -> None:
    """Remove a planted item, for admins; reviewers no longer get it."""
    await drop_planted(services, caller, name, item_id)


def _item_json(item: PlantedItem) -> dict[str, Any]:
    texts = {"payload": msgspec.Raw(item.body), "response": msgspec.Raw(item.response)}
    return {"id": item.id, "path": item.path} | texts


router = Router(
    "/api/policies",
    route_handlers=[get_budget, post_restart, get_catch_rates, get_planted, post_planted, delete_planted],
    tags=["policies"],
)
