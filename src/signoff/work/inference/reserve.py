"""Limit: what a job will use is reserved before its model is asked, and settled once it is known what it used."""

from __future__ import annotations

import asyncio

import structlog

from signoff.core.estimate import estimate
from signoff.core.job import Job
from signoff.core.limits import SECOND, Limit, Refusal, Room, Wish
from signoff.core.price import NANO, dollars
from signoff.core.tokens import Usage
from signoff.errors import BudgetSpent, LimitReached, Overloaded
from signoff.work.inference.metering import price_of
from signoff.work.services import Desk

AGAIN_SECONDS = 0.5
SETTLE_SECONDS = 5.0
WHOSE = {"all": "All callers together", "each": "Each user", "user": "This user", "token": "This token"}
log = structlog.get_logger()


async def reserve(desk: Desk, job: Job) -> Room | None:
    """Room for `job` under every limit that it has; None if it has none.

    Raises LimitReached, BudgetSpent, and Overloaded where nobody knows whether there is room.
    """
    limits = await desk.limits.of(job)
    if not limits:
        return None
    wish = await _wish(desk, job, limits)
    asking = desk.background.spawn(_reserved(desk, wish))
    try:
        found = await asyncio.shield(asking)
    except asyncio.CancelledError:
        desk.background.spawn(_undo(desk, asking))
        raise
    if isinstance(found, Refusal):
        raise _refused(found)
    return found


async def give_back(desk: Desk, room: Room, before: Job, after: Job, *, asked: bool = True) -> None:
    """Counts what the job has taken meanwhile, and gives the rest back. Done even while the task is being cancelled.

    Whoever waits for that waits SETTLE_SECONDS at most: where the store is away, it is done once that is back.
    """
    tokens = after.prompt_tokens + after.completion_tokens - before.prompt_tokens - before.completion_tokens
    cost = (after.cost_nanodollars or 0) - (before.cost_nanodollars or 0)
    settling = desk.background.spawn(_settle(desk, room, max(0, tokens), max(0, cost), asked=asked))
    await asyncio.wait([settling], timeout=SETTLE_SECONDS)


async def _wish(desk: Desk, job: Job, limits: tuple[tuple[str, Limit], ...]) -> Wish:
    tokens = cost = 0
    if any(limit.counts_tokens for _, limit in limits):
        about = estimate(job.path, job.body)
        told = [(limit.tokens_per_minute, limit.tokens_per_day, limit.tokens_per_month) for _, limit in limits]
        tokens = about.within(min((most for three in told for most in three if most is not None), default=None))
        usage = Usage(prompt_tokens=about.prompt, completion_tokens=tokens - about.prompt, total_tokens=tokens)
        cost = await price_of(desk, job, usage) or 0
    return Wish(id=job.id, limits=limits, tokens=tokens, cost=cost, lease_seconds=desk.rooms.lease_seconds)


async def _reserved(desk: Desk, wish: Wish) -> Room | Refusal:
    found = await desk.store.quotas.reserve(wish)
    if isinstance(found, Room):
        desk.rooms.add(found)
    return found


def _refused(refusal: Refusal) -> LimitReached:
    limit, seconds = refusal.limit, None if refusal.wait is None else refusal.wait / SECOND
    of = "" if limit.model is None else f" of {limit.model}"
    told = f"{WHOSE[limit.who]} may use {_most(refusal)}{of}"
    if seconds is None:
        text = f"{told}; this request takes more than that."
    elif refusal.what == "parallel":
        text = f"{told}, and so many are under way."
    else:
        text = f"{told}; there is room in {seconds:.3f} s."
    kind = BudgetSpent if refusal.is_budget else LimitReached
    return kind(text, retry_after_seconds=seconds, gauges=refusal.gauges)


def _most(refusal: Refusal) -> str:
    """How much there may be of what there is not enough of, in words."""
    limit = refusal.limit
    words = {
        "requests": f"{limit.requests_per_minute} requests in a minute",
        "tokens": f"{limit.tokens_per_minute} tokens in a minute",
        "parallel": f"{limit.parallel} requests at a time",
        "tokens_per_day": f"{limit.tokens_per_day} tokens in a day",
        "tokens_per_month": f"{limit.tokens_per_month} tokens in a month",
        "cost_per_day": f"{dollars(limit.cost_per_day or 0, NANO)} dollars in a day",
        "cost_per_month": f"{dollars(limit.cost_per_month or 0, NANO)} dollars in a month",
    }
    return words[refusal.what]


async def _undo(desk: Desk, asking: asyncio.Task[Room | Refusal]) -> None:
    """Nobody waits for this reservation any more."""
    found = await asking
    if isinstance(found, Room):
        await _settle(desk, found, 0, 0, asked=False)


async def _settle(desk: Desk, room: Room, tokens: int, cost: int, *, asked: bool) -> None:
    """Tries until the store takes it: what was used must be known."""
    desk.rooms.drop(room)  # first: a room that is renewed behind its settling would be held again
    while True:
        try:
            await desk.store.quotas.settle(room, tokens=tokens, cost=cost, asked=asked)
        except Overloaded as error:
            log.warning("what a request used is counted when the store is back", job=room.wish.id, error=repr(error))
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            return
