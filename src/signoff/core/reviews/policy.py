"""Review policies: the answers that a person must review, and the outcome if no one does."""

from typing import Literal

import msgspec

from signoff.core.api_paths import COUNT_TOKENS

Review = Literal["always", "never"]
OnDeadline = Literal["stay", "approve", "reject"]
# Beyond this number of versions, which many changes between retries can add up to, every answer is held.
MAX_VERSIONS = 16
# Door of the jobs by which a policy asks a judge or a moderation model about an answer.
POLICY_DOOR = "policy"


class Escalation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Move of a held answer to another review queue when its deadline has passed."""

    escalate: str
    """Name of the queue."""


class PolicyVersion(msgspec.Struct, frozen=True, order=True):
    """A version of a named policy; see `rules.ReviewPolicy`."""

    name: str
    """Name of the policy."""
    version: int
    """Number of the version, from 1."""


class JobPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Rules of the review of one job: a review mode, and versions of named policies (`rules.ReviewPolicy`).

    A job stores its policy on admission, so a later change does not release what is held.
    """

    review: Review = "never"
    """`always` holds every answer for a review, `never` releases it at once."""
    deadline_seconds: float | None = None
    """Time for a verdict, from the hold on; None for no deadline."""
    on_deadline: OnDeadline = "stay"
    """Outcome at the deadline: the job stays in review, is approved, or is rejected."""
    undo_seconds: float = 0
    """Time for which a verdict can be undone before it takes effect."""
    named: tuple[PolicyVersion, ...] = ()
    """Versions of named policies that apply, the strictest outcome of which counts. A job that was submitted under one
    version and is done again under another has both."""
    is_judged: bool = False
    """True if a named policy must look at the answer before it leaves; False if the request has decided."""

    @property
    def may_hold(self) -> bool:
        """True if an answer under this policy can be held, so that nothing of it leaves before its ruling."""
        return self.review == "always" or self.is_judged

    @property
    def name(self) -> str | None:
        """Name of the named policy that applies first; None if none does."""
        return self.named[0].name if self.named else None

    @property
    def version(self) -> int | None:
        """Version of the named policy that applies first; None if none does."""
        return self.named[0].version if self.named else None


def review_for(path: str, review: Review | None) -> Review | None:
    """Return the review rule of an answer of `path`: `never` for a count of tokens, which is no text of a model."""
    return "never" if path == COUNT_TOKENS else review


def policy_for(target_review: Review | None, door_review: Review, base: JobPolicy) -> JobPolicy:
    """Return `base` with the review rule of the target, or of the door if the target has none."""
    review = target_review or door_review
    return base if base.review == review else msgspec.structs.replace(base, review=review)
