"""When a person must look at an answer, and what happens if nobody does."""

from __future__ import annotations

from typing import Literal

import msgspec

Review = Literal["always", "never"]
OnDeadline = Literal["stay", "approve", "reject"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Frozen into the job when it is submitted: a later change of mind does not free what is held."""

    review: Review = "never"
    deadline_seconds: float | None = None
    on_deadline: OnDeadline = "stay"
    undo_seconds: float = 0

    @property
    def may_hold(self) -> bool:
        """Whether an answer under this policy can be held at all."""
        return self.review == "always"


def policy_for(target_review: Review | None, door_review: Review, base: Policy) -> Policy:
    """`base` with the review that rules: the target's own, else the door's."""
    return msgspec.structs.replace(base, review=target_review or door_review)
