"""Requests of callers, each with a unique name that is found again in its jobs, answers and webhooks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

NAME = re.compile(rb"wish-\d+-[0-9a-f]+")
# Targets with their weights. MUST_FAIL has the error codes of those that always fail.
LATER = {
    "echo/delay=0.02": 30,
    "echo/delay=0.2": 20,
    "echo/delay=0.6": 8,
    "held/delay=0.05": 8,
    "by-turns": 14,
    "poison/status=500": 3,
    "cutting": 2,
    "hanging": 2,
    "limited": 1,
}
QUICK = {target: weight for target, weight in LATER.items() if target not in {"hanging", "limited"}}
NOW = {"echo": 40, "echo/delay=0.1": 30, "echo/delay=1.3": 6, "held/delay=0.05": 8, "by-turns": 12}
MUST_FAIL = {"poison": "model_error", "cutting": "model_cut", "hanging": "model_timed_out", "limited": "model_error"}
RETRY_AFTER = {"limited": 7.0}


@dataclass(frozen=True, kw_only=True)
class ClientRequest:
    """A request that a caller is going to send."""

    name: str
    door: str
    """The door: `job`, `enqueue` or `call`."""
    target: str
    key: str | None = None
    hook: bool = False
    stream: bool = False
    twin: bool = False
    """True if the request is sent twice at once, with one key."""
    cancel: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """Return the body for the model."""
        messages = [{"role": "user", "content": self.name}]
        return {"model": self.target, "messages": messages, "stream": self.stream}


def client_requests(rng: Random, later: Mapping[str, int]) -> Iterator[ClientRequest]:
    """Yield requests without end; `later` gives the targets of queued jobs, with their weights."""
    for number in itertools.count():
        name = f"wish-{number}-{rng.getrandbits(24):06x}"
        draw = rng.random()
        if draw < 0.08:
            yield ClientRequest(name=name, door="enqueue", target="echo/delay=0.02")
        elif draw < 0.75:
            yield _later(name, rng, later)
        else:
            yield _now(name, rng)


def _later(name: str, rng: Random, targets: Mapping[str, int]) -> ClientRequest:
    has_key = rng.random() < 0.5
    return ClientRequest(
        name=name,
        door="job",
        target=_one_of(targets, rng),
        key=f"key-of-{name}" if has_key else None,
        twin=has_key and rng.random() < 0.2,
        hook=rng.random() < 0.3,
        cancel=rng.random() < 0.06,
    )


def _now(name: str, rng: Random) -> ClientRequest:
    key = f"key-of-{name}" if rng.random() < 0.3 else None
    return ClientRequest(name=name, door="call", target=_one_of(NOW, rng), key=key, stream=rng.random() < 0.4)


def _one_of(weights: Mapping[str, int], rng: Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
