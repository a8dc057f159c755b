"""Models of a round: echoes, one that fails by turns, and some that always fail."""

from __future__ import annotations

import itertools

from fakes.behaviours import BEHAVIOURS
from fakes.http_server import RecordedRequest, Reply, json_reply
from fakes.upstream import FakeUpstream
from faults.wishes import RETRY_AFTER
from signoff.core.model import Model, Timeouts

_GOOD = "repeat"
_TURNS = itertools.cycle(
    (_GOOD, "broken", _GOOD, "cut-body", _GOOD, "leave", _GOOD, "broken-in-silence", _GOOD),
)


async def _repeat(request: RecordedRequest) -> Reply:
    """Answer with the request as the text of a completion."""
    message = {"role": "assistant", "content": request.body.decode()}
    return json_reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


async def _fail_by_turns(request: RecordedRequest) -> Reply:
    """Answer with the request; every other time fail, in another way each time."""
    reply = BEHAVIOURS[next(_TURNS)]
    return reply if isinstance(reply, Reply) else await reply(request)


BEHAVIOURS["repeat"] = _repeat
BEHAVIOURS["by-turns"] = _fail_by_turns


def models(upstream: FakeUpstream) -> list[Model]:
    """Return the models of a new round. `too-many` answers with a `Retry-After` of RETRY_AFTER."""
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
