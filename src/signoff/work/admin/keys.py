"""Upstream keys: users give their own, admins share some; nobody is ever shown one again."""

from __future__ import annotations

import re

from signoff.core.access import Caller, UpstreamKey, may_remove, may_use
from signoff.errors import BadRequest, Forbidden, NotFound
from signoff.work.services import Services

LONGEST_KEY_NAME = 255
# What fits into a header, without blanks around it.
KEY = re.compile(r"[!-~]([ -~]{0,9998}[!-~])?")


async def add_key(services: Services, caller: Caller, name: str, secret: str, *, shared: bool = False) -> UpstreamKey:
    """The new key, to send its owner's requests with; everybody's, if `shared`. Raises Forbidden, BadRequest."""
    if shared and caller.role != "admin":
        raise Forbidden("Only an admin may share a key.")
    if caller.user_id <= 0:
        raise Forbidden("A key belongs to a user: this needs a token.")
    if not 0 < len(name) <= LONGEST_KEY_NAME or not name.isprintable():
        raise BadRequest(f"A key's name has 1 to {LONGEST_KEY_NAME} printable characters.")
    if not KEY.fullmatch(secret):
        raise BadRequest("A key is what the upstream takes behind `Bearer`: printable ASCII without blanks around it.")
    sealed = services.adapters.vault.seal(secret)
    return await _key(services, await services.store.catalog.add_key(caller.user_id, name, sealed, is_shared=shared))


async def list_keys(services: Services, caller: Caller, *, after_id: int, limit: int) -> list[UpstreamKey]:
    """A page of the keys that this caller may use; an admin sees that all others exist."""
    user_id = None if caller.role == "admin" else caller.user_id
    return await services.store.catalog.keys(user_id, after_id=after_id, limit=limit)


async def remove_key(services: Services, caller: Caller, key_id: int) -> None:
    """What was to be sent with it fails from now on. Raises NotFound; Forbidden for one that somebody else shares."""
    key = await _key(services, key_id)
    if not may_remove(caller, key):
        raise Forbidden("Only an admin may remove it.") if key.is_shared else _none(key_id)
    await services.store.catalog.drop_key(key_id)
    services.caches.keys.invalidate()


async def key_of_user(services: Services, user_id: int, key_id: int) -> int:
    """`key_id`, if that user may use it. Raises NotFound."""
    if not may_use(user_id, await _key(services, key_id)):
        raise _none(key_id)
    return key_id


async def _key(services: Services, key_id: int) -> UpstreamKey:
    key = await services.store.catalog.known_key(key_id) if 0 < key_id < 2**31 else None
    if key is None:
        raise _none(key_id)
    return key


def _none(key_id: int) -> NotFound:
    return NotFound(f"There is no upstream key {key_id}.")
