"""Ballots: answers on which several reviewers vote, each without knowing of the others."""

from signoff.core.access import Caller
from signoff.core.job import Decision, Job
from signoff.core.reviews.votes import decision_of, votes_needed
from signoff.errors import Stale
from signoff.store import TransitionRequest
from signoff.work.services import Services


async def cast_vote(
    services: Services, caller: Caller, job: Job, decision: Decision
) -> tuple[TransitionRequest, Decision | None]:
    """Return the transition that records the vote `decision`, and the decision of the round if this vote completes it.

    The transition is stale if the job has changed since `job`. Raises Stale if `caller` has voted in this round.
    """
    earlier = [vote.decision for vote in await services.store.reviews.votes(job.id, job.round)]
    if caller.email in {vote.reviewer for vote in earlier}:
        raise Stale("You have voted on this answer; a round takes one vote of each reviewer.", job_id=job.id)
    votes = [*earlier, decision]
    vote = TransitionRequest(
        verb="vote",
        actor=caller.actor,
        round=job.round,
        reviewer=caller.email,
        seq=job.seq,
        vote=decision,
        note={"votes": len(votes)},
    )
    return vote, decision_of(votes_needed(job), votes)
