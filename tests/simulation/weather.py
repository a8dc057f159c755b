"""Conditions of a run: the climate, which the seed fixes for the whole run, and the weather, which changes."""

from __future__ import annotations

from random import Random

import msgspec


class Climate(msgspec.Struct, frozen=True, kw_only=True):
    """The fixed conditions of a run. Each run has only some of the faults, as a frequent one can hide a rare one."""

    processes: int
    users: int
    reviewers: int
    faults: tuple[str, ...]
    steps_between_faults: int
    undo_seconds: float
    deadline_seconds: float | None
    on_deadline: str
    retention_seconds: float | None
    has_broker: bool
    log_before_answer: bool
    drain_seconds: float
    model_seconds: tuple[float, ...]
    vague_news: bool


FAULTS = (
    *("crash", "stop", "pause", "jump", "cut off"),
    *("outage", "lost answers", "slow store", "silence", "bad models", "no receivers"),
)


def climate_of(random_float: Random) -> Climate:
    """Return a random climate."""
    return Climate(
        processes=random_float.choice([1, 2, 3, 3, 4]),
        users=random_float.randint(4, 10),
        reviewers=random_float.randint(1, 4),
        faults=tuple(fault for fault in FAULTS if random_float.random() < 0.75) or ("crash",),
        steps_between_faults=random_float.choice([400, 1000, 2500]),
        undo_seconds=random_float.choice([0, 2, 8]),
        deadline_seconds=random_float.choice([None, None, 5, 20]),
        on_deadline=random_float.choice(["stay", "approve", "reject"]),
        retention_seconds=random_float.choice([None, 90]),
        has_broker=random_float.random() < 0.7,
        log_before_answer=random_float.random() < 0.3,
        drain_seconds=random_float.choice([0, 3]),
        model_seconds=random_float.choice([(0.05, 0.3), (0.05, 0.3, 3), (0.3, 3, 8)]),
        vague_news=random_float.random() < 0.3,
    )


class Weather:
    """The present rates of faults, as shares of one, and latencies in seconds; the nemesis changes them."""

    def __init__(self, random_float: Random) -> None:
        self._random = random_float.random
        self._random_float = random_float
        self.clear()

    def clear(self) -> None:
        """Remove all faults."""
        self.store_refuses = self.answers_lost = self.news_lost = self.bells_lost = 0.0
        self.models_fail = self.receivers_fail = 0.0
        self.model_seconds: tuple[float, ...] = (0.05, 0.3)
        self.store_seconds = self.network_seconds = 0.002

    def happens(self, share: float) -> bool:
        """Return True with the probability `share`."""
        return share > 0 and self._random() < share

    def store_latency(self) -> float:
        """Return the seconds that a message to or from the store takes."""
        return self._random_float.expovariate(1 / self.store_seconds)

    def latency(self) -> float:
        """Return the seconds that any other message takes."""
        return self._random_float.expovariate(1 / self.network_seconds)
