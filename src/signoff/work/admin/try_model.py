"""Try: one request to a model, as an admin asks it while setting it up."""

from __future__ import annotations

import contextlib

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.answer import collect
from signoff.core.ask import Ask
from signoff.core.cache import Fresh
from signoff.core.endpoints import PREDICT
from signoff.work.call import begin, chunks_of
from signoff.work.services import Desk


async def try_model(desk: Desk, caller: Caller, name: str, body: bytes) -> bytes:
    """The answer, by the path of every call. Raises Forbidden, ModelFailed and its kin, and what `begin` raises."""
    check_admin(caller)
    plain = Ask(door="native", caller=caller, path=PREDICT, body=body, target=name, lane="now", wait_seconds=0)
    ask = msgspec.structs.replace(plain, fresh=Fresh(no_store=True))
    async with contextlib.aclosing(chunks_of(desk, await begin(desk, ask))) as chunks:
        return collect([chunk async for chunk in chunks]).body
