"""Metrics of this process: counts and durations, which the operations report here and `work.admin.metrics` writes out.

No label has a value that callers choose, so models count under their registered names.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import product
from typing import get_args

from signoff.core.delivery import DeliveryKind, DeliveryState
from signoff.core.job import Job
from signoff.core.limits import LimitKind
from signoff.core.metrics import (
    FIRST_BYTE_BUCKETS,
    LAG_BUCKETS,
    MODEL_BUCKETS,
    OVERHEAD_BUCKETS,
    WAIT_BUCKETS,
    DurationHistogram,
)
from signoff.core.transitions import TRANSITIONS
from signoff.infra.arrival import ARRIVED_AT
from signoff.runtime.attempt import Attempt
from signoff.store import TransitionRequest

# Labels in place of the name of a model: of all pipelines, and of models that are not registered any more.
PIPELINES, OTHERS = "(pipeline)", "(other)"
MAX_MODELS = 1000
LAG_SECONDS = 0.5
NANO = 1_000_000_000


class ModelMetrics:
    """Numbers and durations of one model."""

    def __init__(self) -> None:
        self.in_flight = 0
        """Attempts in progress."""
        self.attempts = Counter[tuple[str, str]]()
        """Attempts by lane and outcome."""
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = self.cost_nanodollars = 0
        """Usage of all attempts."""
        self.request_duration = DurationHistogram(MODEL_BUCKETS)
        """Times from the arrival of a waiting call to its settled answer."""
        self.first_byte = DurationHistogram(FIRST_BYTE_BUCKETS)
        """Times from the request to the model until the first content."""
        self.duration = DurationHistogram(MODEL_BUCKETS)
        """Times from the request to the model until the end of the answer."""


class Metrics:
    """Numbers and durations since the start of this process.

    Args:
        registered_name: Function that returns the name of the registered model that a name belongs to; None for none.
    """

    def __init__(self, registered_name: Callable[[str], str | None]) -> None:
        self._registered_name = registered_name
        self.models = dict[str, ModelMetrics]()
        """Figures of each model, by its registered name."""
        self.requests = Counter[tuple[str, str]]()
        """Admitted requests, by door and model."""
        self.responses = Counter[int]()
        """HTTP responses, by status."""
        self.cache_lookups = Counter[str]()
        """Lookups in the response cache, by result."""
        # From 0, because Prometheus sees no increase in the first value of a series.
        self.limits_refused = Counter[str](dict.fromkeys(get_args(LimitKind), 0))
        """Refusals, by what the limit counts."""
        self.transitions = Counter[str](dict.fromkeys(TRANSITIONS, 0))
        """Transitions, by verb."""
        outcomes = product(get_args(DeliveryKind), get_args(DeliveryState))
        self.deliveries = Counter[tuple[str, str]](dict.fromkeys(outcomes, 0))
        """Attempts at deliveries, by kind and outcome."""
        self.overhead = {phase: DurationHistogram(OVERHEAD_BUCKETS) for phase in ("admit", "reserve", "settle")}
        """Times of this server itself, by phase."""
        self.queue_wait = DurationHistogram(WAIT_BUCKETS)
        """Waits of queued jobs for a worker."""
        self.verdicts = defaultdict[str, DurationHistogram](lambda: DurationHistogram(WAIT_BUCKETS))
        """Times from the hold to the verdict, by verdict."""
        self.loop_lag = DurationHistogram(LAG_BUCKETS)
        """Delays of the event loop."""

    def admitted(self, job: Job) -> None:
        """Count a request that was admitted."""
        self.requests[job.door, self._label(job)] += 1

    def responded(self, status: int) -> None:
        """Count an HTTP response."""
        self.responses[status] += 1

    def looked_up(self, *, is_hit: bool) -> None:
        """Count a lookup in the response cache."""
        self.cache_lookups["hit" if is_hit else "miss"] += 1

    def refused(self, kind: str) -> None:
        """Count an attempt that a limit refused."""
        self.limits_refused[kind] += 1

    def delivered(self, kind: str, outcome: str) -> None:
        """Count an attempt at a delivery."""
        self.deliveries[kind, outcome] += 1

    def attempt_began(self, attempt: Attempt) -> ModelMetrics:
        """Count the beginning of an attempt; return the figures of its model, for `attempt_ended`."""
        model = self._of(attempt.job)
        model.in_flight += 1
        arrived_at = ARRIVED_AT.get()
        if arrived_at is not None and attempt.job.is_waiting_call:
            self.overhead["admit"].observe(attempt.phases.began - arrived_at)
        return model

    def model_answered(self, attempt: Attempt, before: Job, after: Job) -> None:
        """Count what an attempt used: the difference of `before` and `after`, and its times."""
        phases = attempt.phases
        if attempt.started_at is None or phases.requested is None:
            return
        model, begun_at, ended_at = self._of(after), attempt.first_byte_at, attempt.ended_at
        self.overhead["reserve"].observe(phases.requested - phases.began)
        if after.attempt == 1 and after.queued_us is not None and not after.is_waiting_call:
            self.queue_wait.observe(after.queued_us / 1_000_000)
        if begun_at is None or ended_at is None:
            return
        model.first_byte.observe(begun_at - attempt.started_at)
        model.duration.observe(ended_at - attempt.started_at)
        model.prompt_tokens += after.prompt_tokens - before.prompt_tokens
        model.cached_tokens += after.cached_tokens - before.cached_tokens
        model.completion_tokens += after.completion_tokens - before.completion_tokens
        model.cost_nanodollars += (after.cost_nanodollars or 0) - (before.cost_nanodollars or 0)

    def attempt_ended(self, attempt: Attempt, model: ModelMetrics, settled: Job | None) -> None:
        """Count the end of an attempt. `model` is what `attempt_began` returned; `settled` is None if it has no end."""
        model.in_flight -= 1
        outcome, now = _outcome(attempt, settled), time.perf_counter()
        self._of(attempt.job).attempts[attempt.job.lane, outcome] += 1
        if attempt.phases.ended is not None and settled is not None:
            self.overhead["settle"].observe(now - attempt.phases.ended)
        arrived_at = ARRIVED_AT.get()
        if outcome == "success" and arrived_at is not None and attempt.job.is_waiting_call:
            self._of(attempt.job).request_duration.observe(now - arrived_at)

    def transitions_made(self, job: Job, requests: Sequence[TransitionRequest]) -> None:
        """Count the transitions that led to `job`, and the time to its verdict if one of them is a verdict."""
        for request in requests:
            self.transitions[request.verb] += 1
            if request.verb == "decide" and request.decision is not None and job.held_at is not None:
                seconds = (job.updated_at - job.held_at) / 1_000_000
                self.verdicts[request.decision.verdict].observe(max(0.0, seconds))

    async def run(self) -> None:
        """Measure the delays of the event loop. Never returns."""
        clock = asyncio.get_running_loop().time
        while True:
            due_at = clock() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self.loop_lag.observe(max(0.0, clock() - due_at))

    def _of(self, job: Job) -> ModelMetrics:
        return self.models.get(job.model) or self._add(self._label(job))

    def _add(self, label: str) -> ModelMetrics:
        known = self.models.get(label)
        if known is None:
            label = label if len(self.models) < MAX_MODELS else OTHERS
            known = self.models.setdefault(label, ModelMetrics())
        return known

    def _label(self, job: Job) -> str:
        """Return the name under which the model of `job` counts."""
        if job.model in self.models:
            return job.model
        if job.pipeline_id is not None:
            return PIPELINES
        label = self._registered_name(job.model) or OTHERS
        self._add(label)
        return label if label in self.models else OTHERS


_OUTCOMES = {"success": "success", "human": "held", "fail": "failed"}


def _outcome(attempt: Attempt, settled: Job | None) -> str:
    if attempt.is_parked:
        return "parked"
    if attempt.is_cut_off:
        return "cancelled"
    if settled is None:
        return "lost"
    return _OUTCOMES.get(settled.status) or ("retried" if attempt.is_reserved else "postponed")
