"""Administration of the response cache: its size, and deleting answers. The jobs of deleted answers stay."""

import msgspec

from signoff.core.access import Caller
from signoff.core.audit import cache_cleared
from signoff.core.cache import CacheFilter, CacheSize
from signoff.errors import Forbidden
from signoff.work.admin.people import user_with_email
from signoff.work.services import Services


async def clear_cache(services: Services, caller: Caller, query: CacheFilter, email: str | None = None) -> int:
    """Delete matching answers of the caller, or for an admin of all users, and return their number.

    Every process is told to drop its copies. A cache that is private to a process is then dropped as a whole, so there
    only an admin's call is announced.

    Args:
        services: The dependencies.
        caller: The caller.
        query: The answers to delete.
        email: The user whose answers are deleted; None for all that the caller may delete.

    Raises:
        Forbidden: the answers are those of another user, and the caller is not an admin.
        NotFound: there is no such user.
        Overloaded: the cache does not answer, and may still have the answers.
    """
    allowed = await _narrow(services, caller, query, email)
    deleted = None
    try:
        deleted = await services.caches.responses.delete(allowed)
        return deleted
    finally:
        if (deleted != 0) if services.caches.responses.is_shared else (caller.role == "admin"):
            await services.store.changed("cache", cache_cleared(allowed, deleted))


async def get_cache_size(services: Services, caller: Caller, query: CacheFilter, email: str | None = None) -> CacheSize:
    """Return the size of the matching part of the cache. Raises Forbidden, NotFound, Overloaded."""
    return await services.caches.responses.size(await _narrow(services, caller, query, email))


async def _narrow(services: Services, caller: Caller, query: CacheFilter, email: str | None) -> CacheFilter:
    if caller.role != "admin":
        if email not in {None, caller.email}:
            raise Forbidden("Only an admin may see or delete cached answers of other users.")
        return msgspec.structs.replace(query, user_id=caller.user_id)
    if email is None:
        return query
    return msgspec.structs.replace(query, user_id=(await user_with_email(services, email)).id)
