"""History of reviews: what a reviewer has decided, what others changed afterwards, and how far reviewers agree."""

from collections.abc import Sequence

import msgspec

from signoff.core.access import Caller, check_may_review
from signoff.core.filters import Page
from signoff.core.job import Job, Vote
from signoff.core.reviews.queues import DecisionRecord, ReviewFilter, VoteRecord
from signoff.core.reviews.votes import Agreement, agreement, is_open_ballot, votes_needed
from signoff.work.reviews.held import check_queue_of, queues_of
from signoff.work.services import Services

MAX_COUNT = 1000
VOTES_COMPARED = 2000


class PastVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict of a reviewer, and what became of it."""

    vote: VoteRecord
    """The verdict."""
    decision: DecisionRecord | None
    """Decision of the round; None while others still vote."""
    later: tuple[DecisionRecord, ...]
    """Decisions of later rounds: the verdict was undone, or the answer was sent back."""
    status: str | None
    """Status of the job; None if it was deleted."""


class QueueDepth(msgspec.Struct, frozen=True, kw_only=True):
    """Number of answers that wait in a queue."""

    queue: str
    """Name of the queue; empty for that of all reviewers."""
    held: int
    """The number, at most MAX_COUNT."""
    held_is_capped: bool
    """True if there are more."""
    oldest_held_at: int | None
    """Earliest time of a hold, in microseconds since 1970, UTC; None if nothing waits."""


async def list_held(services: Services, caller: Caller, queue: str | None, filters: ReviewFilter) -> Page[Job]:
    """Return a page of held answers of one queue, or of all queues of `caller`. Raises Forbidden."""
    return await services.store.reviews.list(await with_queues(services, caller, queue, filters))


async def with_queues(services: Services, caller: Caller, queue: str | None, filters: ReviewFilter) -> ReviewFilter:
    """Return `filters` for one queue, or for all queues of `caller`. Raises Forbidden."""
    if queue is not None:
        await check_queue_of(services, caller, queue)
    queues = [queue] if queue is not None else await queues_of(services, caller)
    return msgspec.structs.replace(filters, queues=tuple(queues))


async def open_votes(services: Services, job: Job) -> tuple[int, list[Vote]]:
    """Return the number of votes on the answer of `job`, and the votes themselves once all are in and disagree."""
    needed = votes_needed(job)
    if needed == 1:
        return 0, []
    votes = await services.store.reviews.votes(job.id, job.round)
    return len(votes), votes if is_open_ballot(needed, [vote.decision for vote in votes]) else []


async def past_verdicts(
    services: Services, caller: Caller, *, after: tuple[int, str] | None, limit: int
) -> list[PastVerdict]:
    """Return verdicts of `caller`, the newest first. Raises Forbidden."""
    check_may_review(caller)
    votes = await services.store.reviews.verdicts_of(caller.email, after=after, limit=limit)
    job_ids = list({vote.job_id for vote in votes})
    decisions = await services.store.reviews.decisions(job_ids)
    statuses = await services.store.jobs.statuses(job_ids)
    return [_past_verdict(vote, decisions, statuses.get(vote.job_id, (None, 0))[0]) for vote in votes]


def _past_verdict(vote: VoteRecord, decisions: Sequence[DecisionRecord], status: str | None) -> PastVerdict:
    of_job = [each for each in decisions if each.job_id == vote.job_id]
    return PastVerdict(
        vote=vote,
        decision=next((each for each in of_job if each.round == vote.round), None),
        later=tuple(each for each in of_job if each.round > vote.round),
        status=status,
    )


async def queue_depths(services: Services, caller: Caller) -> list[QueueDepth]:
    """Return how many answers wait in each queue of `caller`."""
    depths = list[QueueDepth]()
    for queue in await queues_of(services, caller):
        number, oldest = await services.store.reviews.depth(queue, at_most=MAX_COUNT + 1)
        is_capped = number > MAX_COUNT
        depths.append(
            QueueDepth(queue=queue, held=min(number, MAX_COUNT), held_is_capped=is_capped, oldest_held_at=oldest)
        )
    return depths


async def recent_agreement(services: Services, caller: Caller) -> Agreement:
    """Return how far reviewers agree: the first two votes on each answer among the latest VOTES_COMPARED votes."""
    check_may_review(caller)
    votes = await services.store.reviews.blind_votes(VOTES_COMPARED)
    by_round = dict[tuple[str, int], list[str]]()
    for vote in sorted(votes, key=lambda vote: vote.at):
        by_round.setdefault((vote.job_id, vote.round), []).append(vote.verdict)
    pairs = [(verdicts[0], verdicts[1]) for verdicts in by_round.values() if len(verdicts) > 1]
    return agreement(pairs)


async def asker_of(services: Services, caller: Caller, job: Job) -> str | None:
    """Return the email of the user who asked for the answer; None if there is no such user. Raises Forbidden."""
    check_may_review(caller)
    return await services.caches.reviewers.email_of(job.user_id)
