"""Named review policies and their versions, in SQL."""

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signoff.core.audit import change_of
from signoff.core.reviews.policy import PolicyVersion
from signoff.core.reviews.rules import MAX_POLICIES, ReviewPolicy
from signoff.errors import Conflict, VersionConflict
from signoff.infra.actor import current_actor
from signoff.stores.audit import record
from signoff.stores.database import Database
from signoff.stores.policy_schema import policies, policy_versions
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock

_CURRENT = sa.select(policy_versions.c.policy).join(
    policies, (policies.c.name == policy_versions.c.name) & (policies.c.version == policy_versions.c.version)
)


class SqlPolicies:
    """Named review policies in a SQL database; see `catalog.Policies`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, policy: ReviewPolicy, *, expected_version: int | None = None) -> ReviewPolicy:
        """See `catalog.Policies`."""
        actor = current_actor()

        def put(tx: Tx) -> ReviewPolicy:
            lock(tx, "policies")
            _check(tx, policy)
            old = tx.conn.execute(_CURRENT.where(policies.c.name == policy.name)).scalar_one_or_none()
            if expected_version not in {None, 0 if old is None else old.version}:
                raise VersionConflict(f"The policy {policy.name!r} was changed meanwhile; read it again first.")
            newest = sa.select(sa.func.max(policy_versions.c.version)).where(policy_versions.c.name == policy.name)
            version = (tx.conn.execute(newest).scalar_one() or 0) + 1
            new = msgspec.structs.replace(policy, version=version, created_at=tx.now)
            tx.conn.execute(sa.insert(policy_versions).values(name=new.name, version=version, policy=new))
            tx.conn.execute(sa.delete(policies).where(policies.c.name == new.name))
            tx.conn.execute(sa.insert(policies).values(name=new.name, target=new.target, version=version))
            record(tx, actor, change_of("policy", new.name, old, new))
            bump(tx, "policies")
            return new

        try:
            return await self._database.write(put)
        except IntegrityError:  # another process saved a policy at the same time
            return await self._database.write(put)

    async def get(self, name: str, version: int | None = None) -> ReviewPolicy | None:
        """See `catalog.Policies`."""
        query = _CURRENT.where(policies.c.name == name)
        if version is not None:
            is_version = (policy_versions.c.name == name) & (policy_versions.c.version == version)
            query = sa.select(policy_versions.c.policy).where(is_version)
        return await self._database.read(lambda conn, _: conn.execute(query).scalar_one_or_none())

    async def current(self) -> list[PolicyVersion]:
        """See `catalog.Policies`."""
        query = sa.select(policies.c.name, policies.c.version).order_by(policies.c.name)
        rows = await self._database.read(lambda conn, _: conn.execute(query).all())
        return [PolicyVersion(row.name, row.version) for row in rows]

    async def page(self, *, after: str = "", limit: int = 50) -> list[ReviewPolicy]:
        """See `catalog.Policies`."""
        query = _CURRENT.where(policies.c.name > after).order_by(policies.c.name).limit(limit)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def versions(self, name: str, *, before: int | None = None, limit: int = 50) -> list[ReviewPolicy]:
        """See `catalog.Policies`."""
        query = sa.select(policy_versions.c.policy).where(policy_versions.c.name == name)
        if before is not None:
            query = query.where(policy_versions.c.version < before)
        query = query.order_by(policy_versions.c.version.desc()).limit(limit)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def drop(self, name: str) -> bool:
        """See `catalog.Policies`."""
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            lock(tx, "policies")
            old = tx.conn.execute(_CURRENT.where(policies.c.name == name)).scalar_one_or_none()
            if old is None:
                return False
            tx.conn.execute(sa.delete(policies).where(policies.c.name == name))
            record(tx, actor, change_of("policy", name, old, None))
            bump(tx, "policies")
            return True

        return await self._database.write(drop)


def _check(tx: Tx, policy: ReviewPolicy) -> None:
    """Raise Conflict if another policy has the target, or there are too many."""
    others = sa.select(policies.c.name, policies.c.target).where(policies.c.name != policy.name).limit(MAX_POLICIES)
    rows = tx.conn.execute(others).all()
    if (other := next((row.name for row in rows if row.target == policy.target), None)) is not None:
        raise Conflict(f"`target` {policy.target!r} has the policy {other!r} already; change or delete that one.")
    if len(rows) >= MAX_POLICIES:
        raise Conflict(f"There are {MAX_POLICIES} policies, and there may be no more; delete one first.")
