"""Upstream keys: added by users, shared by admins, never shown again."""

import re
from collections.abc import Sequence

from signoff.core.access import Caller, UpstreamKey, check_identified, may_remove, may_use
from signoff.errors import BadRequest, Forbidden, NotFound
from signoff.work.services import Services

MAX_KEY_NAME_LENGTH = 255
# Characters of an HTTP header value, without blanks around it.
KEY = re.compile(r"[!-~]([ -~]{0,9998}[!-~])?")


async def add_key(services: Services, caller: Caller, name: str, secret: str, *, shared: bool = False) -> UpstreamKey:
    """Store an upstream key of the caller, encrypted, and return it without its value.

    Every user may use the key if it is `shared`. Raises Unauthorized, Forbidden, BadRequest.
    """
    check_identified(caller)
    if shared and caller.role != "admin":
        raise Forbidden("Only an admin may share a key.")
    if caller.user_id <= 0:
        raise Forbidden("An upstream key belongs to a user; send the token of one.")
    if not 0 < len(name) <= MAX_KEY_NAME_LENGTH or not name.isprintable():
        raise BadRequest(f"`name` must be 1 to {MAX_KEY_NAME_LENGTH} printable characters long (got {len(name)}).")
    if not KEY.fullmatch(secret):
        raise BadRequest("`key` must be printable ASCII without blanks around it, as it follows `Bearer` in a header.")
    sealed = services.adapters.vault.seal(secret)
    key_id = await services.store.catalog.add_key(caller.user_id, name, sealed, is_shared=shared)
    return await _load_key(services, key_id)


async def list_keys(services: Services, caller: Caller, *, after_id: int, limit: int) -> list[UpstreamKey]:
    """Return a page of the keys that the caller may use; for an admin, of all keys. No key has its value."""
    user_id = None if caller.role == "admin" else caller.user_id
    return await services.store.catalog.keys(user_id, after_id=after_id, limit=limit)


async def owners_of(services: Services, caller: Caller, keys: Sequence[UpstreamKey]) -> dict[int, str]:
    """Return the emails of the owners of keys by the ids of the keys: for an admin of all, else of the caller's own."""
    owned = {key.id: key.user_id for key in keys if key.user_id is not None}
    if caller.role != "admin":
        return {key_id: caller.email for key_id, user_id in owned.items() if user_id == caller.user_id}
    emails = {user_id: await services.caches.reviewers.email_of(user_id) for user_id in set(owned.values())}
    return {key_id: email for key_id, user_id in owned.items() if (email := emails[user_id]) is not None}


async def remove_key(services: Services, caller: Caller, key_id: int) -> None:
    """Remove the key; requests that use it fail from then on.

    Raises Unauthorized, NotFound, and Forbidden for a shared key of another user.
    """
    check_identified(caller)
    key = await _load_key(services, key_id)
    if not may_remove(caller, key):
        raise Forbidden("Only an admin may remove a shared key.") if key.is_shared else _not_found(key_id)
    await services.store.catalog.drop_key(key_id)
    services.caches.keys.invalidate()


async def key_of_user(services: Services, user_id: int, key_id: int) -> int:
    """Return `key_id` if the user may use the key. Raises NotFound."""
    if not may_use(user_id, await _load_key(services, key_id)):
        raise _not_found(key_id)
    return key_id


async def _load_key(services: Services, key_id: int) -> UpstreamKey:
    key = await services.store.catalog.known_key(key_id) if 0 < key_id < 2**31 else None
    if key is None:
        raise _not_found(key_id)
    return key


def _not_found(key_id: int) -> NotFound:
    return NotFound(f"There is no upstream key {key_id}; list them with `GET /api/keys`.")
