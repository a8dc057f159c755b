"""Interface of the store for error budgets: their periods, passes and audits, and planted items.

The transitions of jobs do the rest, each in its own transaction: `succeed` uses the pass that the coin of a ruling
names, `hold` gives it back and opens the audit if the coin says so, and the verdict closes the audit. Transitions that
end a job without a verdict leave its audit open; `cancel` then presents a copy of the job to reviewers.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from signoff.core.job import Job
from signoff.core.reviews.answer_digest import Harmless
from signoff.core.reviews.budget_period import BudgetPeriod, BudgetTerms
from signoff.core.reviews.planted import CatchCount, PlantedItem


class PassRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for passes: each lets one answer leave without a review, or be audited."""

    policy: str
    """Name of the policy that has the budget."""
    group: str | None = None
    """Group of the answers; None if the budget is one for all."""
    version: int
    """Version of the policy. Terms of a version before that of the present period are ignored."""
    terms: BudgetTerms
    """Terms of the budget; new ones start a new period."""
    lease: str
    """Id of the lease under which the passes are taken, which no other lease has."""
    most: int
    """Largest number of passes to take."""
    seconds: float
    """Seconds after which unused passes go back to the budget, by the store's clock."""


class PassGrant(msgspec.Struct, frozen=True, kw_only=True):
    """Passes that were taken; none while the gate of the budget is closed, so that all answers are held."""

    period: BudgetPeriod | None
    """The period, after the passes were taken; None for a group that has none and gets none."""
    number: int
    """Number of passes."""


class Budgets(Protocol):
    """Error budgets. Processes take passes one after the other, so that together they never exceed the budget."""

    async def take_passes(self, request: PassRequest) -> PassGrant:
        """Take passes of the present period, as many as the gate lets through; begin a period where that is due.

        Each group has periods of its own. A policy with MAX_GROUPS groups gets no further one, and a version of the
        policy with other kinds of groups than before ends the periods of all. Versions before that get no passes.

        A period ends when as many answers have left as its terms say, when the terms change, and by `restart`. Its
        leases and its open audits stay with it. Passes whose lease has lapsed are counted as they were used; a job that
        is about to use one of them raises PassLapsed.
        """
        ...

    async def period(self, policy: str, group: str | None = None) -> BudgetPeriod | None:
        """Return the present period of the group, or else the newest period of the policy.

        None if no answer has come under it yet.
        """
        ...

    async def groups(self, policy: str, *, after: str | None = None, limit: int = 50) -> Sequence[BudgetPeriod]:
        """Return a page of the present periods of groups, ordered by group; `after` is the last of the page before."""
        ...

    async def group_count(self, policy: str) -> int:
        """Return the number of groups that have a present period."""
        ...

    async def restart(self, policy: str, group: str | None = None) -> BudgetPeriod | None:
        """End the present period, begin one with equal terms, and record that in the audit log.

        Return the new period; None if no answer has come under the budget, or of the group, yet.
        """
        ...

    async def restart_groups(self, policy: str) -> int:
        """End the present periods of all groups, and record that in the audit log; return their number.

        The next answer of each group begins its next period.
        """
        ...

    async def plant(self, item: PlantedItem) -> PlantedItem:
        """Add an item to those that are mixed into the reviews of its policy; return it with its id."""
        ...

    async def planted(self, policy: str, *, after_id: int = 0, limit: int = 50) -> Sequence[PlantedItem]:
        """Return a page of the planted items of a policy, ordered by id; `after_id` is the last of the page before."""
        ...

    async def drop_planted(self, policy: str, item_id: int) -> bool:
        """Remove an item, which is then presented no more. Return False if the policy has none with this id."""
        ...

    async def present_planted(
        self, policy: str, like: Job, secret: str, *, actor: str, harmless: tuple[Harmless, ...] = ()
    ) -> Job | None:
        """Present the item of the policy that was presented the longest time ago; return its job, None without items.

        The job looks like the held job `like`; its id is made from `secret`, a random text. It has no caller: it is not
        delivered, not counted, and the owner of `like` does not see it. Edits that `harmless` names do not catch it.
        """
        ...

    async def catch_counts(self, policy: str) -> Sequence[CatchCount]:
        """Return what each reviewer has caught of the planted items of the policy, ordered by reviewer."""
        ...
