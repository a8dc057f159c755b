"""Passes of error budgets that this process has taken, a few at a time, so that not every answer costs a write."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import msgspec

from signoff.budgets import Budgets, PassRequest
from signoff.core.reviews.budget_period import BudgetTerms

# The passes of a process that was killed go back after this time, by the clock of the store.
LEASE_SECONDS = 30.0
# This process uses no pass that is older, by its own clock, so that it does not lapse before its answer is stored.
FRESH_SECONDS = 10.0
MAX_PASSES = 16
# Other processes need passes too: a lease takes at most this share of those that are left.
SHARES = 8


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """The right to let one answer leave without a review, unless its coin says otherwise."""

    lease: str
    """Id of the lease that it belongs to."""
    period: int
    """Number of the period of the budget."""
    audit_rate: float
    """Probability of an audit in this period."""


class _Lease(msgspec.Struct):
    one: Pass
    version: int
    number: int
    fresh_until: float


class Passes:
    """Passes by policy. Those that are not used lapse by themselves."""

    def __init__(self, budgets: Budgets, new_id: Callable[[], str]) -> None:
        self._budgets = budgets
        self._new_id = new_id
        self._leases: dict[str, _Lease] = {}
        self._most: dict[str, int] = {}
        self._locks = defaultdict[str, asyncio.Lock](asyncio.Lock)

    async def take(self, policy: str, version: int, terms: BudgetTerms) -> Pass | None:
        """Return a pass, or None while the gate is closed. Raises Overloaded.

        Args:
            policy: Name of the policy that has the budget.
            version: Version of the policy; a newer one than before may start a new period.
            terms: Terms of the budget in that version.
        """
        async with self._locks[policy]:
            lease = self._leases.get(policy)
            if lease is None or lease.number == 0 or lease.version < version or lease.fresh_until < _now():
                lease = await self._lease(policy, version, terms)
            if lease is None:
                return None
            lease.number -= 1
            return lease.one

    async def _lease(self, policy: str, version: int, terms: BudgetTerms) -> _Lease | None:
        fresh_until = _now() + FRESH_SECONDS
        request = PassRequest(
            policy=policy,
            version=version,
            terms=terms,
            lease=self._new_id(),
            most=self._most.get(policy, 1),
            seconds=LEASE_SECONDS,
        )
        self._leases.pop(policy, None)
        grant = await self._budgets.take_passes(request)
        self._most[policy] = max(1, min(MAX_PASSES, grant.period.passes // SHARES))
        if grant.number == 0:
            return None
        period = grant.period
        one = Pass(lease=request.lease, period=period.number, audit_rate=period.terms.audit_rate)
        lease = _Lease(one=one, version=max(version, period.version), number=grant.number, fresh_until=fresh_until)
        self._leases[policy] = lease
        return lease


def _now() -> float:
    return asyncio.get_running_loop().time()
