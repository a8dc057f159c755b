"""In-memory named review policies, and all their versions."""

from __future__ import annotations

import msgspec

from signoff.core.audit import change_of
from signoff.core.reviews.policy import PolicyVersion
from signoff.core.reviews.rules import MAX_POLICIES, ReviewPolicy
from signoff.errors import Conflict, VersionConflict
from signoff.infra.actor import current_actor
from simulation.tables import Connection, Tables, Tx, bump, record


class MemoryPolicies:
    """In-memory implementation of `catalog.Policies`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def put(self, policy: ReviewPolicy, *, expected_version: int | None = None) -> ReviewPolicy:
        actor = current_actor()

        def put(tx: Tx) -> ReviewPolicy:
            others = [each for each in self._applying() if each.name != policy.name]
            if (other := next((each for each in others if each.target == policy.target), None)) is not None:
                raise Conflict(f"`target` has the policy {other.name!r} already.")
            if len(others) >= MAX_POLICIES:
                raise Conflict("There are too many policies.")
            old = self._find(policy.name)
            if expected_version not in {None, 0 if old is None else old.version}:
                raise VersionConflict
            version = max((number for name, number in self._tables.policy_versions if name == policy.name), default=0)
            new = msgspec.structs.replace(policy, version=version + 1, created_at=tx.now)
            self._tables.policy_versions[new.name, new.version] = new
            self._tables.policies[new.name] = new.version
            record(self._tables, tx, actor, change_of("policy", new.name, old, new))
            bump(self._tables, tx, "policies")
            return new

        return await self._connection.send(put, writes=True)

    async def get(self, name: str, version: int | None = None) -> ReviewPolicy | None:
        def find(_: Tx) -> ReviewPolicy | None:
            return self._find(name) if version is None else self._tables.policy_versions.get((name, version))

        return await self._connection.send(find, writes=False)

    async def current(self) -> list[PolicyVersion]:
        policies = self._tables.policies
        return await self._connection.send(
            lambda _: [PolicyVersion(name, version) for name, version in sorted(policies.items())], writes=False
        )

    async def page(self, *, after: str = "", limit: int = 50) -> list[ReviewPolicy]:
        def page(_: Tx) -> list[ReviewPolicy]:
            return [each for each in self._applying() if each.name > after][:limit]

        return await self._connection.send(page, writes=False)

    async def versions(self, name: str, *, before: int | None = None, limit: int = 50) -> list[ReviewPolicy]:
        def versions(_: Tx) -> list[ReviewPolicy]:
            every = [each for key, each in sorted(self._tables.policy_versions.items()) if key[0] == name]
            return [each for each in reversed(every) if before is None or each.version < before][:limit]

        return await self._connection.send(versions, writes=False)

    async def drop(self, name: str) -> bool:
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            old = self._find(name)
            if old is not None:
                del self._tables.policies[name]
                record(self._tables, tx, actor, change_of("policy", name, old, None))
                bump(self._tables, tx, "policies")
            return old is not None

        return await self._connection.send(drop, writes=True)

    def _applying(self) -> list[ReviewPolicy]:
        return [self._tables.policy_versions[key] for key in sorted(self._tables.policies.items())]

    def _find(self, name: str) -> ReviewPolicy | None:
        return self._tables.policy_versions.get((name, self._tables.policies.get(name, 0)))
