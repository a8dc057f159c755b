"""Functions: which are registered, registering what the files hold, and calling one for somebody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.filters import LibraryFilter
from signoff.core.pipelines.function import Function
from signoff.funcs.loading import BrokenFile
from signoff.store import SyncResult
from signoff.work.pipelines.library import list_items
from signoff.work.services import Services

MAX_PROMPTS = 1000


class SyncReport(msgspec.Struct, frozen=True):
    """What came of a sync, and what is wrong in the files."""

    synced: SyncResult
    broken: Sequence[BrokenFile]


async def list_functions(services: Services, *, after: str, limit: int) -> list[Function]:
    """A page of the registered functions, by name."""
    known = await services.caches.functions.registered()
    return list(islice((known[name] for name in sorted(known) if name > after), limit))


async def sync_functions(services: Services, caller: Caller) -> SyncReport:
    """Registers what the files of this process hold now, as it is now, for all processes. Raises Forbidden."""
    check_admin(caller)
    found = await services.caches.functions.scan()
    synced = await services.store.library.sync([ready.function for ready in found.ready.values()], found.unread)
    services.caches.functions.invalidate()
    return SyncReport(synced, found.broken)


async def call_function(services: Services, caller: Caller, function: Function, args: Mapping[str, object]) -> str:
    """What it gives for arguments by name, as a text. Raises FunctionFailed."""

    async def prompts() -> list[str]:
        page = await list_items(services, caller, LibraryFilter(kind="prompt", limit=MAX_PROMPTS))
        return [prompt.name for prompt in page]

    return await services.caches.functions.call(function, args, prompts)
