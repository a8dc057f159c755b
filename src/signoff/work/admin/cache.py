"""Clear: answers are forgotten before their time. The jobs that they came from stay as they are."""

from __future__ import annotations

import msgspec

from signoff.core.access import Caller
from signoff.core.cache import CacheFilter, CacheSize
from signoff.errors import Forbidden, NotFound
from signoff.work.services import Services


async def clear_cache(services: Services, caller: Caller, which: CacheFilter, email: str | None = None) -> int:
    """Forgets those of the caller's own, or of anybody where an admin asks; how many. Every process hears of it; but
    one with a cache of its own forgets all that it has then, so there it hears of an admin alone.

    `email` names a user. Raises Forbidden, NotFound, and Overloaded when the cache is away: then it may have them yet.
    """
    those = await _allowed(services, caller, which, email)
    deleted = None
    try:
        deleted = await services.caches.responses.delete(those)
        return deleted
    finally:
        if (deleted != 0) if services.caches.responses.is_shared else (caller.role == "admin"):
            await services.store.changed("cache")


async def get_cache_size(services: Services, caller: Caller, which: CacheFilter, email: str | None = None) -> CacheSize:
    """How much is kept of those. Raises Forbidden, NotFound, Overloaded."""
    return await services.caches.responses.size(await _allowed(services, caller, which, email))


async def _allowed(services: Services, caller: Caller, which: CacheFilter, email: str | None) -> CacheFilter:
    if caller.role != "admin":
        if email not in {None, caller.email}:
            raise Forbidden("Only an admin may look after the answers of others.")
        return msgspec.structs.replace(which, user_id=caller.user_id)
    if email is None:
        return which
    user = await services.store.people.user(email)
    if user is None:
        raise NotFound(f"There is no user {email}.")
    return msgspec.structs.replace(which, user_id=user.id)
