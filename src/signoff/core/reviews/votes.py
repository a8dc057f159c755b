"""Votes: several reviewers decide on one answer without knowing of each other, and how far they agree.

An answer that needs N votes is decided when N reviewers agree. If they do not, the next reviewer, who sees all votes,
decides alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from signoff.core.job import Decision, Event, Job


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement of reviewers on answers on which two or more voted."""

    items: int
    """Answers that were compared, each by its first two votes."""
    raw: float | None
    """Share of them on which both votes are the same verdict; None without items."""
    kappa: float | None
    """Cohen's kappa, the agreement beyond chance: 1 for full agreement, 0 for chance; None if it is not defined."""


def votes_needed(job: Job) -> int:
    """Return the number of reviewers who must agree on the answer of `job`."""
    return 1 if job.ruling is None else max(1, job.ruling.votes)


def may_see_draft(job: Job, author: str | None, reviewer: str) -> bool:
    """Return True if `reviewer` may see what `author` has saved as a draft for the answer of `job`.

    A draft shows how its author will vote. So while several vote, nobody else sees it, whoever has the answer open.
    """
    return author == reviewer or job.status != "human" or votes_needed(job) == 1


def as_seen_by(job: Job, reviewer: str) -> Job:
    """Return `job` without its draft if `reviewer` may not see that."""
    if job.draft is None or may_see_draft(job, job.draft.author, reviewer):
        return job
    return msgspec.structs.replace(job, draft=None)


def event_as_seen_by(job: Job, event: Event, reviewer: str) -> Event:
    """Return an event of `job` without the draft in it if `reviewer` may not see that."""
    draft = event.data.get("draft")
    if draft is None or may_see_draft(job, draft.get("author"), reviewer):
        return event
    return msgspec.structs.replace(event, data={name: event.data[name] for name in event.data if name != "draft"})


def is_open_ballot(needed: int, votes: Sequence[Decision]) -> bool:
    """Return True if all votes of an undecided round are in, so that the next reviewer sees them and decides alone."""
    return needed > 1 and len(votes) >= needed


def decision_of(needed: int, votes: Sequence[Decision]) -> Decision | None:
    """Return the decision of a round with these votes, the latest last; None while it needs more.

    Reviewers agree if their verdicts and their edits are the same. The decision is the latest of the votes.
    """
    if not votes or len(votes) < needed:
        return None
    latest = votes[-1]
    is_casting = len(votes) > needed
    agree = all((vote.verdict, vote.edit) == (latest.verdict, latest.edit) for vote in votes)
    return latest if is_casting or agree else None


def agreement(pairs: Sequence[tuple[str, str]]) -> Agreement:
    """Return the agreement of pairs of verdicts on the same answers.

    >>> agreement([("approve", "approve")] * 20 + [("approve", "reject")] * 5 + [("reject", "approve")] * 10
    ...     + [("reject", "reject")] * 15)
    Agreement(items=50, raw=0.7, kappa=0.4)
    """
    if not pairs:
        return Agreement(items=0, raw=None, kappa=None)
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    equal = sum(one == other for one, other in pairs)
    kappa = cohens_kappa(len(pairs), equal, ((first[verdict], second[verdict]) for verdict in first))
    return Agreement(items=len(pairs), raw=equal / len(pairs), kappa=kappa)


def cohens_kappa(pairs: int, equal: int, counts: Iterable[tuple[int, int]]) -> float | None:
    """Return Cohen's kappa of `pairs` of verdicts, of which `equal` are the same; None if it is not defined.

    `counts` tells of each verdict how often it is the first and the second of a pair. kappa = (p_o - p_e) / (1 - p_e),
    where p_o is the share of equal pairs, and p_e the share that is expected if first and second verdicts were
    independent: the sum of the products of the shares of each verdict among both. Source: J. Cohen, "A coefficient of
    agreement for nominal scales", Educational and Psychological Measurement 20 (1960), 37-46.
    """
    by_chance = sum(first * second for first, second in counts)
    return None if by_chance == pairs**2 else (equal * pairs - by_chance) / (pairs**2 - by_chance)
