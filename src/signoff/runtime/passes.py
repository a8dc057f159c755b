"""Passes of error budgets that this process has taken, a few at a time, so that not every answer costs a write."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import msgspec
from cachetools import LRUCache

from signoff.budgets import Budgets, PassRequest
from signoff.core.reviews.budget_period import BudgetTerms

# The passes of a process that was killed go back after this time, by the clock of the store.
LEASE_SECONDS = 30.0
# This process uses no pass that is older, by its own clock, so that it does not lapse before its answer is stored.
FRESH_SECONDS = 10.0
MAX_PASSES = 16
# Other processes need passes too: a lease takes at most one in so many of those that are left.
SHARES = 8
# Groups whose leases this process remembers.
MAX_LEASES = 4096


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """The right to let one answer leave without a review, unless its coin says otherwise."""

    lease: str
    """Id of the lease that the pass belongs to."""
    period: int
    """Number of the period of the budget."""
    audit_rate: float
    """Probability of an audit in this period."""


class _Lease(msgspec.Struct):
    """Passes that were taken together: `number` are left, each equal to `pass_`."""

    pass_: Pass
    version: int
    number: int
    fresh_until: float


_Key = tuple[str, str | None]


class Passes:
    """Passes by policy and group. Those that this process does not use lapse with their lease."""

    def __init__(self, budgets: Budgets, new_id: Callable[[], str]) -> None:
        self._budgets = budgets
        self._new_id = new_id
        self._leases = LRUCache[_Key, _Lease](MAX_LEASES)
        self._most = LRUCache[_Key, int](MAX_LEASES)
        self._locks = defaultdict[str, asyncio.Lock](asyncio.Lock)

    async def take(self, policy: str, group: str | None, version: int, terms: BudgetTerms) -> Pass | None:
        """Return a pass, or None while the gate is closed. Raises Overloaded.

        Args:
            policy: Name of the policy that has the budget.
            group: Group of the answer; None if the budget is one for all.
            version: Version of the policy; a newer one than before may start a new period.
            terms: Terms of the budget in that version.
        """
        async with self._locks[policy]:
            lease = self._leases.get((policy, group))
            if lease is None or lease.number == 0 or lease.version < version or lease.fresh_until < _now():
                lease = await self._lease((policy, group), version, terms)
            if lease is None:
                return None
            lease.number -= 1
            return lease.pass_

    async def _lease(self, key: _Key, version: int, terms: BudgetTerms) -> _Lease | None:
        fresh_until = _now() + FRESH_SECONDS
        request = PassRequest(
            policy=key[0],
            group=key[1],
            version=version,
            terms=terms,
            lease=self._new_id(),
            most=self._most.get(key, 1),
            seconds=LEASE_SECONDS,
        )
        self._leases.pop(key, None)
        grant = await self._budgets.take_passes(request)
        period = grant.period
        if period is not None:
            self._most[key] = max(1, min(MAX_PASSES, period.passes // SHARES))
        if period is None or grant.number == 0:
            return None
        pass_ = Pass(lease=request.lease, period=period.number, audit_rate=period.terms.audit_rate)
        version = max(version, period.version)
        lease = _Lease(pass_=pass_, version=version, number=grant.number, fresh_until=fresh_until)
        self._leases[key] = lease
        return lease


def _now() -> float:
    return asyncio.get_running_loop().time()
