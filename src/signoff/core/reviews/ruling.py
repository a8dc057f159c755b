"""Rulings: the decisions of policies on answers, and the signals that they have looked at."""

from typing import Any, Literal

import msgspec

from signoff.core.reviews.coin import Coin
from signoff.core.reviews.policy import Escalation, OnDeadline

Outcome = Literal["pass", "hold", "reject"]


class Ruling(msgspec.Struct, frozen=True, kw_only=True):
    """A policy's decision on the answer of one round of a job, stored with the job before the answer leaves."""

    outcome: Outcome
    """`pass` delivers the answer, `hold` lets a person decide, `reject` fails the job."""
    policy: str | None = None
    """Name of the policy; None if the review mode of the model or of the door says it."""
    version: int | None = None
    """Version of the policy."""
    rule: int | None = None
    """Position of the rule that matched, from 0; None for the default of the policy."""
    signals: dict[str, Any] = {}
    """Values that the rules have looked at, by name."""
    queue: str | None = None
    """Review queue of a held answer; None for the queue of all reviewers."""
    priority: int | None = None
    """Priority of a held answer on the desk, from 0 to 9; None for that of the job."""
    deadline_seconds: float | None = None
    """Time for a verdict, from the hold on; None for that of the job's policy."""
    on_deadline: OnDeadline | Escalation | None = None
    """Outcome at the deadline; None for that of the job's policy."""
    audit: float | None = None
    """Probability with which the rules ask that a person looks at a passed answer; None for none."""
    votes: int = 1
    """Number of reviewers who must agree."""
    code: str | None = None
    """Error code of a rejected answer; None for `rejected`."""
    message: str | None = None
    """Message of a rejected answer for its caller."""
    coin: Coin | None = None
    """Coin of an answer that the rules let pass; None if none was tossed. Reviewers do not see it."""
