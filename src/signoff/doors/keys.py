"""The native API of upstream keys: `/api/keys`; every user manages their own."""

from typing import Annotated, Any

import msgspec
from litestar import Router, delete, get, post
from litestar.params import FromPath, QueryParameter

from signoff.core.access import UpstreamKey
from signoff.core.wire import format_time
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import INTS, parse_json
from signoff.work.admin.keys import add_key, list_keys, remove_key

MAX_PAGE = 1000


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/keys`."""

    name: str
    """Name of the key, for people."""
    key: str
    """API key of the upstream."""
    shared: bool = False
    """True to let all users send requests with the key; for admins only."""


@post("/", status_code=201, summary="Store an upstream key")
async def post_key(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Store the key and return its id; the key itself is never shown again."""
    new = parse_json(await request.body(), NewKey, "upstream key")
    return _key_json(await add_key(services, caller, new.name, new.key, shared=new.shared))


@get("/", summary="List upstream keys")
async def get_keys(
    services: InjectedServices,
    caller: InjectedCaller,
    after: Annotated[int, QueryParameter(ge=0, lt=INTS)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 50,
) -> dict[str, Any]:
    """Return a page of the caller's own and all shared keys (for admins, of all keys), oldest first.

    Pass `next` as `after` to get the next page.
    """
    keys = await list_keys(services, caller, after_id=after, limit=limit)
    return {"data": [_key_json(key) for key in keys], "next": keys[-1].id if len(keys) == limit else None}


@delete("/{key_id:int}", status_code=204, summary="Remove an upstream key")
async def delete_key(services: InjectedServices, caller: InjectedCaller, key_id: FromPath[int]) -> None:
    """Remove the key; later requests that need it fail."""
    await remove_key(services, caller, key_id)


def _key_json(key: UpstreamKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "shared": key.is_shared,
        "user_id": key.user_id,
        "created_at": format_time(key.created_at),
    }


router = Router("/api/keys", route_handlers=[post_key, get_keys, delete_key], tags=["models"])
