"""Functions: which are registered, registering what the files hold, and calling one for somebody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.pipelines.function import Function
from signoff.funcs.loading import Broken
from signoff.store import ComposedFilter, Synced
from signoff.work.pipelines.library import look_at_each
from signoff.work.services import Desk

MAX_PROMPTS = 1000


class Report(msgspec.Struct, frozen=True):
    """What came of a sync, and what is wrong in the files."""

    synced: Synced
    broken: Sequence[Broken]


async def look_at_functions(desk: Desk, *, after: str, limit: int) -> list[Function]:
    """A page of the registered functions, by name."""
    known = await desk.functions.registered()
    return list(islice((known[name] for name in sorted(known) if name > after), limit))


async def sync(desk: Desk, caller: Caller) -> Report:
    """Registers what the files of this process hold now, as it is now, for all processes. Raises Forbidden."""
    check_admin(caller)
    found = await desk.functions.scan()
    synced = await desk.store.compositions.sync([ready.function for ready in found.ready.values()], found.unread)
    desk.functions.forget()
    return Report(synced, found.broken)


async def call_function(desk: Desk, caller: Caller, function: Function, args: Mapping[str, object]) -> str:
    """What it gives for arguments by name, as a text. Raises FunctionFailed."""

    async def prompts() -> list[str]:
        page = await look_at_each(desk, caller, ComposedFilter(kind="prompt", limit=MAX_PROMPTS))
        return [prompt.name for prompt in page]

    return await desk.functions.call(function, args, prompts)
