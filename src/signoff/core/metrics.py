"""The metrics of a process: name, type, labels, unit and meaning of each. Names follow Prometheus' conventions.

Buckets of durations are those that OpenTelemetry recommends for clients of models ("Semantic conventions for generative
AI metrics"), and finer ones for the times of this server itself.
"""

from bisect import bisect_left
from itertools import accumulate
from typing import Literal

import msgspec

MODEL_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_BYTE_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

MetricType = Literal["counter", "gauge", "histogram"]


class Metric(msgspec.Struct, frozen=True):
    """Definition of a metric."""

    name: str
    """Name; that of a counter ends in `_total`."""
    type: MetricType
    """Type, as in Prometheus."""
    meaning: str
    """Meaning, as a sentence."""
    labels: tuple[str, ...] = ()
    """Names of its labels."""
    unit: str = ""
    """Unit of its values; empty for a plain number."""


class DurationHistogram:
    """Number of durations in each bucket, and their sum; durations are in seconds.

    It takes a tenth of the time of the histogram in Prometheus' client library, which has a lock.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Add a duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, int]]:
        """Return the upper bound of each bucket, and the number of durations that do not exceed it."""
        return list(zip([*map(str, self._bounds), "+Inf"], accumulate(self._counts), strict=True))


REQUESTS = Metric(
    "signoff_requests_total",
    "counter",
    "Requests that were admitted; one that a reviewer has edited and sends back counts again.",
    ("door", "model"),
)
RESPONSES = Metric("signoff_http_responses_total", "counter", "HTTP responses of all routes.", ("status",))
ATTEMPTS = Metric(
    "signoff_attempts_total",
    "counter",
    "Attempts to get an answer from a model, by outcome: `success`, `held` for a review, `failed`, `retried` later, "
    "`postponed` by a limit, `parked` until its steps have ended, `cancelled`, or `lost` (another "
    "process has the job, or the end could not be recorded).",
    ("model", "lane", "outcome"),
)
IN_FLIGHT = Metric("signoff_attempts_in_flight", "gauge", "Attempts in progress.", ("model",))
TOKENS = Metric(
    "signoff_tokens_total",
    "counter",
    "Tokens of answers: `prompt`, `cached` (a part of the prompt), or `completion`.",
    ("model", "kind"),
    "tokens",
)
COST = Metric("signoff_cost_dollars_total", "counter", "Cost of answers of models with a price.", ("model",), "dollars")
REQUEST_DURATION = Metric(
    "signoff_request_duration_seconds",
    "histogram",
    "Time from the head of a waiting call to its recorded answer.",
    ("model",),
    "seconds",
)
FIRST_BYTE = Metric(
    "signoff_time_to_first_byte_seconds",
    "histogram",
    "Time from the request to a model to the first content of its answer, with the wait for a free slot.",
    ("model",),
    "seconds",
)
MODEL_DURATION = Metric(
    "signoff_model_duration_seconds",
    "histogram",
    "Time from the request to a model to the end of its answer, with the wait for a free slot.",
    ("model",),
    "seconds",
)
OVERHEAD = Metric(
    "signoff_overhead_seconds",
    "histogram",
    "Time of this server itself: `admit` (from the head of a waiting call, with its body, to its admission), `reserve` "
    "(until the model is asked: limits, and the first record), `settle` (from the end of the answer to its record).",
    ("phase",),
    "seconds",
)
QUEUE_WAIT = Metric(
    "signoff_queue_wait_seconds",
    "histogram",
    "Time from when a queued job is due to its first attempt.",
    (),
    "seconds",
)
CACHE_LOOKUPS = Metric(
    "signoff_cache_lookups_total", "counter", "Lookups in the response cache: `hit` or `miss`.", ("result",)
)
LIMITS_REFUSED = Metric(
    "signoff_limits_refused_total",
    "counter",
    "Attempts that a limit refused, by what the limit counts, such as `requests` or `cost_per_day`.",
    ("kind",),
)
TRANSITIONS = Metric(
    "signoff_transitions_total",
    "counter",
    "Transitions of stored jobs that this process made, such as `retry`, `hold` or `lapse` (of a lease).",
    ("verb",),
)
VERDICT_TIME = Metric(
    "signoff_verdict_seconds", "histogram", "Time from the hold of an answer to its verdict.", ("verdict",), "seconds"
)
DELIVERY_ATTEMPTS = Metric(
    "signoff_delivery_attempts_total",
    "counter",
    "Attempts at deliveries, by outcome: `done`, `due` (again later) or `failed` (given up).",
    ("kind", "outcome"),
)
LOOP_LAG = Metric(
    "signoff_event_loop_lag_seconds",
    "histogram",
    "Delay of a timer of the event loop, which is set twice a second.",
    (),
    "seconds",
)
LEASES = Metric("signoff_leases", "gauge", "Leases of jobs that this process holds.")
WAITING = Metric("signoff_slots_waiting", "gauge", "Requests that wait for a free slot of a model.", ("model",))
ENDPOINTS = Metric(
    "signoff_endpoints",
    "gauge",
    "Endpoints of models with a pool: `up`, `resting` during a cooldown, or `waking` after it.",
    ("model", "state"),
)
COOLDOWNS = Metric(
    "signoff_endpoint_cooldowns_total", "counter", "Cooldowns of endpoints that began, after failures.", ("model",)
)
INFO = Metric("signoff_info", "gauge", "Always 1; the version of this process is a label.", ("version",))
STORE_UP = Metric(
    "signoff_store_up", "gauge", "1 if the database answered the latest scrape; 0 if not: its gauges are missing then."
)
QUEUE_JOBS = Metric(
    "signoff_queue_jobs",
    "gauge",
    "Queued jobs that are due and that no worker has claimed, by the role of their owners (`none`: without a token). "
    "Counting ends at 10,000 jobs.",
    ("owner",),
)
QUEUE_AGE = Metric(
    "signoff_queue_oldest_seconds",
    "gauge",
    "Time for which the oldest queued job that no worker has claimed has been due.",
    ("owner",),
    "seconds",
)
HELD = Metric(
    "signoff_held_answers",
    "gauge",
    "Answers that wait for a verdict, by review queue (empty: that of all reviewers). Counting ends at 10,000.",
    ("queue",),
)
HELD_AGE = Metric(
    "signoff_held_oldest_seconds",
    "gauge",
    "Time for which the oldest held answer has waited for a verdict.",
    ("queue",),
    "seconds",
)
DELIVERIES = Metric(
    "signoff_deliveries_pending",
    "gauge",
    "Deliveries that are neither received nor given up. Counting ends at 10,000 of a kind.",
    ("kind",),
)
DELIVERY_AGE = Metric(
    "signoff_delivery_overdue_seconds",
    "gauge",
    "Time for which the next attempt of the oldest pending delivery has been due.",
    ("kind",),
    "seconds",
)
BUDGETS = Metric(
    "signoff_error_budgets",
    "gauge",
    "Error budgets, one for each group of answers: `open`, or `spent` (a person must see every further answer). "
    "Counting ends at 100 groups of a policy.",
    ("policy", "state"),
)
BUDGET_ALLOWED = Metric(
    "signoff_error_budget_allowed",
    "gauge",
    "Wrong answers that may leave in a period of the budget without a review.",
    ("policy",),
)
BUDGET_UNDETECTED = Metric(
    "signoff_error_budget_undetected",
    "gauge",
    "Upper bound of the wrong answers that may have left without a review; of several groups, the highest bound.",
    ("policy",),
)
# In the order of the output, and of the reference.
METRICS = (
    REQUESTS,
    RESPONSES,
    ATTEMPTS,
    IN_FLIGHT,
    REQUEST_DURATION,
    OVERHEAD,
    MODEL_DURATION,
    FIRST_BYTE,
    TOKENS,
    COST,
    CACHE_LOOKUPS,
    LIMITS_REFUSED,
    WAITING,
    ENDPOINTS,
    COOLDOWNS,
    QUEUE_JOBS,
    QUEUE_AGE,
    QUEUE_WAIT,
    LEASES,
    TRANSITIONS,
    HELD,
    HELD_AGE,
    VERDICT_TIME,
    BUDGETS,
    BUDGET_ALLOWED,
    BUDGET_UNDETECTED,
    DELIVERIES,
    DELIVERY_AGE,
    DELIVERY_ATTEMPTS,
    LOOP_LAG,
    STORE_UP,
    INFO,
)
