"""Functions: list them, register what the files define, and call one for a run."""

from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from signoff.catalog import SyncResult
from signoff.core.access import Caller, check_admin
from signoff.core.filters import LibraryFilter
from signoff.core.pipelines.function import Function
from signoff.funcs.loading import BrokenFile
from signoff.work.pipelines.library import list_items
from signoff.work.services import Services

MAX_PROMPTS = 1000


class SyncReport(msgspec.Struct, frozen=True):
    """The result of a sync of functions."""

    synced: SyncResult
    """Names that were registered, dropped, and left out because of a conflict."""
    broken: Sequence[BrokenFile]
    """Files that could not be loaded, with their errors."""


async def list_functions(services: Services, *, after: str, limit: int) -> list[Function]:
    """Return a page of the registered functions, by name: at most `limit` after the name `after`."""
    functions = await services.caches.functions.registered()
    return list(islice((functions[name] for name in sorted(functions) if name > after), limit))


async def sync_functions(services: Services, caller: Caller) -> SyncReport:
    """Register the functions in this process's files for all processes, and drop all others. Raises Forbidden."""
    check_admin(caller)
    scan = await services.caches.functions.scan()
    synced = await services.store.library.sync([loaded.function for loaded in scan.ready.values()], scan.unread)
    services.caches.functions.invalidate()
    return SyncReport(synced, scan.broken)


async def call_function(services: Services, caller: Caller, function: Function, args: Mapping[str, object]) -> str:
    """Return the result of the function as text. Raises FunctionFailed."""

    async def prompts() -> list[str]:
        names, after = list[str](), ""
        while len(names) < MAX_PROMPTS:
            prompts_filter = LibraryFilter(kind="prompt", after=after, limit=MAX_PROMPTS - len(names))
            page = await list_items(services, caller, prompts_filter)
            names += [prompt.name for prompt in page]
            if not page or not page.may_continue:
                break
            after = names[-1]
        return names

    return await services.caches.functions.call(function, args, prompts)
