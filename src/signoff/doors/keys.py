"""The native door to upstream keys: `/api/keys`, for everybody's own."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, delete, get, post
from litestar.params import FromPath, QueryParameter

from signoff.core.access import UpstreamKey
from signoff.core.wire import format_time
from signoff.doors.http import InjectedCaller, InjectedServices, decoded
from signoff.work.admin.keys import add_key, list_keys, remove_key

MAX_PAGE = 1000


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key of an upstream, under a name; `shared` by an admin, everybody's requests may be sent with it."""

    name: str
    key: str
    shared: bool = False


@post("/", status_code=201, summary="Store an upstream key")
async def create(request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Its number; the key itself is never shown again."""
    new = decoded(await request.body(), NewKey, "This is not a key")
    return _as_seen(await add_key(services, caller, new.name, new.key, shared=new.shared))


@get("/", summary="List upstream keys")
async def listed(
    services: InjectedServices,
    caller: InjectedCaller,
    after: Annotated[int, QueryParameter(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 50,
) -> dict[str, Any]:
    """The caller's own and the shared ones, everybody's for an admin; oldest first, `next` is the cursor."""
    keys = await list_keys(services, caller, after_id=after, limit=limit)
    return {"data": [_as_seen(key) for key in keys], "next": keys[-1].id if len(keys) == limit else None}


@delete("/{key_id:int}", status_code=204, summary="Remove an upstream key")
async def removed(services: InjectedServices, caller: InjectedCaller, key_id: FromPath[int]) -> None:
    """What was to be sent with it fails from now on."""
    await remove_key(services, caller, key_id)


def _as_seen(key: UpstreamKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "shared": key.is_shared,
        "user_id": key.user_id,
        "created_at": format_time(key.created_at),
    }


router = Router("/api/keys", route_handlers=[create, listed, removed], tags=["models"])
