"""Review policies: the answers that a person must review, and the outcome if no one does."""

from typing import Literal

import msgspec

from signoff.core.endpoints import COUNT_TOKENS

Review = Literal["always", "never"]
OnDeadline = Literal["stay", "approve", "reject"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A review policy. A job stores its policy on admission, so a later change does not release what is held."""

    review: Review = "never"
    """`always` holds every answer for a review, `never` releases it at once."""
    deadline_seconds: float | None = None
    """Time for a verdict, from the hold on; None for no deadline."""
    on_deadline: OnDeadline = "stay"
    """Outcome at the deadline: the job stays in review, is approved, or is rejected."""
    undo_seconds: float = 0
    """Time for which a verdict can be undone before it takes effect."""

    @property
    def may_hold(self) -> bool:
        """True if an answer under this policy can be held."""
        return self.review == "always"


def review_for(path: str, review: Review | None) -> Review | None:
    """Return the review rule of an answer of `path`: a count of tokens is no words of a model, and needs no review."""
    return "never" if path == COUNT_TOKENS else review


def policy_for(target_review: Review | None, door_review: Review, base: Policy) -> Policy:
    """Return `base` with the review rule of the target, or of the door if the target has none."""
    review = target_review or door_review
    return base if base.review == review else msgspec.structs.replace(base, review=review)


def stricter(policy: Policy, other: Policy) -> Policy:
    """Return `other` if only that can hold an answer, else `policy`."""
    return other if other.may_hold and not policy.may_hold else policy
