"""Upstream keys on the page of people: everybody's own, and those that are shared. Their values are never shown."""

from typing import Any

from litestar import Response, Router, post
from litestar.params import FromPath

from signoff.core.access import Caller, may_remove
from signoff.dashboard.shell import PEOPLE, redirect
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_form
from signoff.work.admin.keys import add_key, list_keys, owners_of, remove_key
from signoff.work.services import Services

MAX_LISTED = 50


@post("/dashboard/people/keys", include_in_schema=False, status_code=303)
async def post_key(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Response[str]:
    """Store an upstream key, and show the page."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), dict[str, str], "upstream key")
    name, key = form.get("name", "").strip(), form.get("key", "").strip()
    await add_key(services, caller, name, key, shared=bool(form.get("shared")))
    return redirect(f"{PEOPLE.path}#keys")


@post("/dashboard/people/keys/{key_id:int}/remove", include_in_schema=False, status_code=303)
async def post_removal(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, key_id: FromPath[int]
) -> Response[str]:
    """Remove an upstream key, and show the page."""
    check_same_site(scope_of(request))
    await remove_key(services, caller, key_id)
    return redirect(f"{PEOPLE.path}#keys")


async def keys_of(services: Services, caller: Caller, after_id: int) -> dict[str, Any]:
    """Return the variables of the list of keys."""
    keys = await list_keys(services, caller, after_id=after_id, limit=MAX_LISTED)
    owners = await owners_of(services, caller, keys)
    return {
        "keys": [{"key": key, "owner": owners.get(key.id), "may_remove": may_remove(caller, key)} for key in keys],
        "next_key": keys[-1].id if len(keys) == MAX_LISTED else None,
    }


router = Router("/", route_handlers=[post_key, post_removal])
