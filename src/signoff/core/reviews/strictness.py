"""Strictness: what applies to an answer under several policies, such as the one then and the one now.

Each member counts by itself, so that no policy takes away what another one demands.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from signoff.core.reviews.policy import MAX_VERSIONS, Escalation, JobPolicy, OnDeadline
from signoff.core.reviews.ruling import Ruling

# From the most lenient to the strictest.
_OUTCOMES = ("pass", "hold", "reject")
_ON_DEADLINE = ("approve", "reject", "escalate", "stay")


class Deadline(NamedTuple):
    """Deadline of a review, and what happens at it."""

    seconds: float | None
    """Time for a verdict; None for no deadline."""
    outcome: OnDeadline | Escalation
    """Outcome at the deadline."""

    @property
    def strictness(self) -> tuple[int, float]:
        """Rank of the deadline; a higher one is stricter.

        An answer without a deadline stays in review. A later approval is stricter, as people have more time to look;
        a rejection or an escalation is stricter if it is earlier.
        """
        if self.seconds is None:
            return _ON_DEADLINE.index("stay"), 0
        outcome = "escalate" if isinstance(self.outcome, Escalation) else self.outcome
        return _ON_DEADLINE.index(outcome), self.seconds if outcome == "approve" else -self.seconds


def stricter(policy: JobPolicy, other: JobPolicy) -> JobPolicy:
    """Return `policy` with what `other` demands besides: its review mode, its deadline, and its named policies.

    The deadline and the time to undo are those of the policies that can hold answers. With more than MAX_VERSIONS named
    policies, every answer is held.
    """
    named = (*policy.named, *(each for each in other.named if each not in policy.named))
    holding = [each for each in (policy, other) if each.may_hold]
    if not holding:
        holding = [policy] if len(named) <= MAX_VERSIONS else [policy, other]
    strictest = max(holding, key=lambda each: deadline_of(None, each).strictness)
    is_always = "always" in {policy.review, other.review} or len(named) > MAX_VERSIONS
    return JobPolicy(
        review="always" if is_always else "never",
        deadline_seconds=strictest.deadline_seconds,
        on_deadline=strictest.on_deadline,
        undo_seconds=max(each.undo_seconds for each in holding),
        named=named[:MAX_VERSIONS],
        is_judged=policy.is_judged or other.is_judged,
    )


def strictest_ruling(rulings: Sequence[Ruling], policy: JobPolicy) -> Ruling:
    """Return what several policies say about one answer; of equally strict ones, the last is named.

    Args:
        rulings: Rulings of the policies, at least one.
        policy: Policy of the job, which has the deadline of a ruling without one.
    """
    outcome = max((each.outcome for each in rulings), key=_OUTCOMES.index)
    same = [each for each in reversed(rulings) if each.outcome == outcome]
    ruling = max(same, key=lambda each: (each.audit or 0, each.queue is not None))
    strictest = max([ruling, *same], key=lambda each: deadline_of(each, policy).strictness)
    return replace(
        ruling,
        deadline_seconds=strictest.deadline_seconds,
        on_deadline=strictest.on_deadline,
        votes=max(each.votes for each in same),
    )


def deadline_of(ruling: Ruling | None, policy: JobPolicy) -> Deadline:
    """Return the deadline of an answer that is held: that of its ruling, or else that of the policy of its job."""
    seconds, outcome = policy.deadline_seconds, policy.on_deadline
    if ruling is None:
        return Deadline(seconds, outcome)
    return Deadline(
        seconds if ruling.deadline_seconds is None else ruling.deadline_seconds,
        outcome if ruling.on_deadline is None else ruling.on_deadline,
    )
