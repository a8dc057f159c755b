"""Metrics for Prometheus: of this process, and gauges from the database, which are read at most every FRESH_SECONDS.

No gauge counts history: each is read from an index of what is open, up to a bound.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from signoff import __version__
from signoff.core import metrics
from signoff.core.access import ROLES
from signoff.core.metrics import DurationHistogram, Metric
from signoff.core.reviews.budget_period import BudgetPeriod
from signoff.runtime.metrics import NANO, ModelMetrics
from signoff.work.services import Services

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

FRESH_SECONDS = 5.0
READ_SECONDS = 5.0
MAX_COUNTED = 10_000
MAX_QUEUES = 100
MAX_GROUPS = 100
Labels = tuple[str, ...]
Samples = Mapping[Labels, float]
# A label has a sample from the start, so that rules and graphs see a zero.
_OWNERS: dict[Labels, float] = {(role,): 0.0 for role in (*ROLES, "none")}
log = structlog.get_logger()


async def render_metrics(services: Services, accept: str = "") -> tuple[bytes, str]:
    """Return all metrics, and their content type: OpenMetrics if `accept` names it, else Prometheus' text."""
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(
        _ScrapeCollector(_families({**_own_samples(services), **await _stored_samples(services)}, services))
    )
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def count_response(services: Services, status: int) -> None:
    """Count an HTTP response."""
    services.runtime.metrics.responded(status)


class _ScrapeCollector:
    """Collector of the metrics of one scrape, as the client library takes them."""

    def __init__(self, families: Iterable["Family"]) -> None:
        self._families = families

    def collect(self) -> Iterable["Family"]:
        """Return the metrics."""
        return self._families


def _families(samples: Mapping[Metric, Samples], services: Services) -> list["Family"]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    histograms, families = _histograms(services), list["Family"]()
    for metric in metrics.METRICS:
        match metric.type:
            case "histogram":
                family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
                for labels, durations in histograms[metric].items():
                    family.add_metric(labels, durations.buckets(), durations.sum)
            case "counter":
                family = CounterMetricFamily(metric.name, metric.meaning, labels=metric.labels)
                for labels, value in samples.get(metric, {}).items():
                    family.add_metric(labels, value)
            case "gauge":
                family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
                for labels, value in samples.get(metric, {}).items():
                    family.add_metric(labels, value)
        families.append(family)
    return families


def _histograms(services: Services) -> dict[Metric, dict[Labels, DurationHistogram]]:
    figures = services.runtime.metrics
    models = figures.models.items()
    return {
        metrics.REQUEST_DURATION: {(name,): each.request_duration for name, each in models},
        metrics.FIRST_BYTE: {(name,): each.first_byte for name, each in models},
        metrics.MODEL_DURATION: {(name,): each.duration for name, each in models},
        metrics.OVERHEAD: {(phase,): each for phase, each in figures.overhead.items()},
        metrics.QUEUE_WAIT: {(): figures.queue_wait},
        metrics.VERDICT_TIME: {(verdict,): each for verdict, each in figures.verdicts.items()},
        metrics.LOOP_LAG: {(): figures.loop_lag},
    }


def _own_samples(services: Services) -> Mapping[Metric, Samples]:
    """Return the counters and gauges of this process."""
    figures, pools = services.runtime.metrics, services.runtime.pools.all()
    endpoints = dict.fromkeys(
        ((pool.model.name, state) for pool in pools for state in ("up", "resting", "waking")), 0.0
    )
    for pool in pools:
        for status in pool.statuses():
            endpoints[pool.model.name, status.state] += 1
    return {
        metrics.REQUESTS: figures.requests,
        metrics.RESPONSES: {(str(status),): number for status, number in figures.responses.items()},
        metrics.CACHE_LOOKUPS: _by_one({"hit": 0, "miss": 0} | figures.cache_lookups),
        metrics.LIMITS_REFUSED: _by_one(figures.limits_refused),
        metrics.TRANSITIONS: _by_one(figures.transitions),
        metrics.DELIVERY_ATTEMPTS: figures.deliveries,
        metrics.LEASES: {(): services.runtime.leases.number},
        metrics.WAITING: {(pool.model.name,): pool.waiting for pool in pools},
        metrics.ENDPOINTS: endpoints,
        metrics.COOLDOWNS: {(pool.model.name,): pool.cooldowns for pool in pools},
        metrics.INFO: {(__version__,): 1},
        **_model_samples(figures.models),
    }


def _by_one(counts: Mapping[str, int]) -> Samples:
    return {(label,): number for label, number in counts.items()}


def _model_samples(models: Mapping[str, ModelMetrics]) -> dict[Metric, Samples]:
    tokens = dict[Labels, float]()
    for name, each in models.items():
        tokens[name, "prompt"] = each.prompt_tokens
        tokens[name, "cached"] = each.cached_tokens
        tokens[name, "completion"] = each.completion_tokens
    return {
        metrics.ATTEMPTS: {
            (name, lane, outcome): number
            for name, each in models.items()
            for (lane, outcome), number in each.attempts.items()
        },
        metrics.IN_FLIGHT: {(name,): each.in_flight for name, each in models.items()},
        metrics.TOKENS: tokens,
        metrics.COST: {(name,): each.cost_nanodollars / NANO for name, each in models.items()},
    }


async def _stored_samples(services: Services) -> Mapping[Metric, Samples]:
    """Return the gauges from the database, at most FRESH_SECONDS old; only STORE_UP if the database does not answer."""
    return await services.runtime.scrape.get(lambda: _read_stored(services), seconds=FRESH_SECONDS)


async def _read_stored(services: Services) -> Mapping[Metric, Samples]:
    try:
        async with asyncio.timeout(READ_SECONDS):
            queue = await services.store.jobs.queue_depths(at_most=MAX_COUNTED)
            deliveries = await services.store.deliveries.depths(at_most=MAX_COUNTED)
            held, budgets = await _held_samples(services), await _budget_samples(services)
    except Exception as error:  # noqa: BLE001 -- the other metrics tell more than an error
        log.warning("stored_metrics_unavailable", error=repr(error))
        return {metrics.STORE_UP: {(): 0}}
    kinds: dict[Labels, float] = {(kind,): 0.0 for kind in services.adapters.deliverers}
    return {
        metrics.STORE_UP: {(): 1},
        metrics.QUEUE_JOBS: _OWNERS | {(each.owner,): each.jobs for each in queue},
        metrics.QUEUE_AGE: _OWNERS | {(each.owner,): each.oldest_seconds for each in queue},
        metrics.DELIVERIES: kinds | {(each.kind,): each.pending for each in deliveries},
        metrics.DELIVERY_AGE: kinds | {(each.kind,): each.overdue_seconds for each in deliveries},
        **held,
        **budgets,
    }


async def _held_samples(services: Services) -> dict[Metric, Samples]:
    numbers: dict[Labels, float] = {("",): 0}
    ages, now = numbers.copy(), services.clock()
    for queue in await services.store.reviews.held_queues(MAX_QUEUES):
        number, oldest = await services.store.reviews.depth(queue, at_most=MAX_COUNTED)
        numbers[queue,] = number
        ages[queue,] = 0 if oldest is None else max(0.0, (now - oldest) / 1_000_000)
    return {metrics.HELD: numbers, metrics.HELD_AGE: ages}


async def _budget_samples(services: Services) -> dict[Metric, Samples]:
    states, allowed, undetected = dict[Labels, float](), dict[Labels, float](), dict[Labels, float]()
    for policy in (await services.caches.policies.index()).policies():
        if policy.budget is None:
            continue
        periods = await _periods(services, policy.name, is_grouped=policy.budget.per is not None)
        spent = sum(period.undetected >= period.terms.allowed for period in periods)
        states |= {(policy.name, "spent"): spent, (policy.name, "open"): len(periods) - spent}
        if periods:
            allowed[policy.name,] = periods[0].terms.allowed
            undetected[policy.name,] = max(period.undetected for period in periods)
    return {metrics.BUDGETS: states, metrics.BUDGET_ALLOWED: allowed, metrics.BUDGET_UNDETECTED: undetected}


async def _periods(services: Services, policy: str, *, is_grouped: bool) -> Sequence[BudgetPeriod]:
    if is_grouped:
        return await services.store.budgets.groups(policy, limit=MAX_GROUPS)
    period = await services.store.budgets.period(policy)
    return () if period is None else (period,)
