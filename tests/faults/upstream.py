"""The models of a round: echoes, one that fails by turns, and some that can only fail."""

from __future__ import annotations

import itertools

from faults.wishes import RETRY_AFTER
from signoff.core.model import Model, Timeouts
from upstreams import BEHAVIOURS, Exchange, FakeUpstream, behaviour

_turns = itertools.count()
_GOOD = "mirror"
_TURNS = (_GOOD, "broken", _GOOD, "cut-body", _GOOD, "leave", _GOOD, "broken-in-silence", _GOOD)


@behaviour
async def by_turns(exchange: Exchange) -> None:
    """Answers with what it was asked, and every other time fails in another way."""
    await BEHAVIOURS[_TURNS[next(_turns) % len(_TURNS)]](exchange)


def models(upstream: FakeUpstream) -> list[Model]:
    """What is registered at the beginning. `too-many` answers with a `Retry-After` of RETRY_AFTER."""
    impatient = Timeouts(connect_seconds=2, first_byte_seconds=1, between_chunks_seconds=1, total_seconds=3)
    assert RETRY_AFTER == {"limited": 7.0}
    return [
        Model(name="held", kind="echo", review="always"),
        Model(name="poison", kind="echo", attempts=3),
        Model(name="by-turns", kind="openai", url=upstream.at("by-turns"), attempts=30, timeouts=impatient),
        Model(name="cutting", kind="openai", url=upstream.at("cut-body"), attempts=3, timeouts=impatient),
        Model(name="hanging", kind="openai", url=upstream.at("hang-before-headers"), attempts=2, timeouts=impatient),
        Model(name="limited", kind="openai", url=upstream.at("too-many"), attempts=2, timeouts=impatient),
    ]
