"""Functions: list them, register what the files define, and call one for a run."""

from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec
import structlog

from signoff.catalog import SyncResult
from signoff.core.access import Caller, check_admin
from signoff.core.filters import LibraryFilter
from signoff.core.pipelines.function import Function
from signoff.funcs.loading import BUILTINS, BrokenFile
from signoff.work.pipelines.library import list_items
from signoff.work.services import Services

MAX_PROMPTS = 1000
log = structlog.get_logger()


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


async def preview_sync(services: Services, caller: Caller) -> SyncReport:
    """Return what a sync would register and drop now; nothing is changed. Raises Forbidden.

    Conflicts with prompts and pipelines are not looked for.
    """
    check_admin(caller)
    scan, registered = await services.caches.functions.scan(), await services.caches.functions.registered()
    created = tuple(sorted(scan.ready.keys() - registered.keys()))
    vanished = [function for name, function in registered.items() if name not in scan.ready]
    deleted = tuple(sorted(function.name for function in vanished if function.module not in scan.unread))
    return SyncReport(SyncResult(created=created, deleted=deleted), scan.broken)


async def register_missing_builtins(services: Services) -> None:
    """Register the builtins that the database lacks, as a new or an upgraded one does.

    If it has no functions at all, register those of the operator too; otherwise, leave theirs as they are. A failure is
    logged, so that the server starts anyway.
    """
    try:
        registered = await services.caches.functions.registered()
        functions = [loaded.function for loaded in (await services.caches.functions.scan()).ready.values()]
        builtins = [function for function in functions if function.module == BUILTINS]
        if any(function.name not in registered for function in builtins):
            others = {function.module for function in registered.values()} - {BUILTINS}
            await services.store.library.sync(builtins if registered else functions, sorted(others))
            services.caches.functions.invalidate()
    except Exception as error:  # noqa: BLE001 -- the operator can correct any fault while the server runs
        log.warning("functions_not_registered", error=str(error), remedy="POST /api/functions/sync")


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
