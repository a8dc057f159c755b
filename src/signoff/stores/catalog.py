"""Registered models and sealed upstream keys, in SQL."""

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signoff.core.access import UpstreamKey, check_key_count
from signoff.core.audit import change_of
from signoff.core.model import EndpointName, Model, key_ids_of, with_existing_keys, with_new_keys, without_keys
from signoff.core.model_digest import model_digest
from signoff.errors import VersionConflict, name_taken
from signoff.infra.actor import current_actor
from signoff.stores.audit import delete_one, record
from signoff.stores.database import Database
from signoff.stores.schema import keys, models
from signoff.stores.transaction import Tx
from signoff.stores.versions import bump, lock

_KEY = tuple(column for column in keys.c if column.name != "sealed")
_NO_KEYS: Mapping[EndpointName, bytes] = {}
# A key without a user belongs to a model.
_OF_MODEL = keys.c.user_id.is_(None)


class SqlCatalog:
    """Models and keys in a SQL database; see `catalog.Catalog`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def models(self) -> list[Model]:
        """See `catalog.Catalog`."""
        query = sa.select(models.c.model).order_by(models.c.name)
        return await self._database.read(lambda conn, _: list(conn.execute(query).scalars()))

    async def put_model(
        self,
        model: Model,
        *,
        sealed: bytes | None = None,
        sealed_at: Mapping[EndpointName, bytes] = _NO_KEYS,
        drops_key: bool = False,
        is_new: bool = False,
        expected_digest: str | None = None,
    ) -> None:
        """See `catalog.Catalog`."""
        actor = current_actor()

        def put(tx: Tx) -> None:
            lock(tx, "models")
            old = tx.conn.execute(sa.select(models.c.model).where(models.c.name == model.name)).scalar_one_or_none()
            if old is not None and is_new:
                raise name_taken(model.name)
            if expected_digest not in {None, old and model_digest(old)}:
                raise VersionConflict(f"The model {model.name!r} was changed meanwhile; read it again first.")
            new = model if old is None else with_existing_keys(model, old)
            new = without_keys(new) if drops_key else new
            new = with_new_keys(new, lambda secret: _add_key(tx, None, model.name, secret), sealed, sealed_at)
            if old is not None:
                _delete_own_keys(tx, {*key_ids_of(old)} - {*key_ids_of(new)})
            if model.default:
                _clear_other_defaults(tx, model.name)
            _replace_model(tx, new)
            record(tx, actor, change_of("model", model.name, old, new))
            bump(tx, "models")

        try:
            await self._database.write(put)
        except IntegrityError:  # another process registered this name at the same time
            if is_new:
                raise name_taken(model.name) from None
            await self._database.write(put)

    async def drop_model(self, name: str) -> bool:
        """See `catalog.Catalog`."""
        actor = current_actor()
        delete = sa.delete(models).where(models.c.name == name).returning(models.c.model)

        def drop(tx: Tx) -> bool:
            model = delete_one(tx, actor, "models", "model", name, delete)
            if model is not None:
                _delete_own_keys(tx, {*key_ids_of(model)})
            return model is not None

        return await self._database.write(drop)

    async def add_key(self, user_id: int, name: str, sealed: bytes, *, is_shared: bool = False) -> int:
        """See `catalog.Catalog`."""
        actor = current_actor()

        def add(tx: Tx) -> int:
            of_user = sa.select(sa.func.count()).where(keys.c.user_id == user_id)
            check_key_count(tx.conn.execute(of_user).scalar_one() + 1)
            key_id = _add_key(tx, user_id, name, sealed, is_shared=is_shared)
            key = UpstreamKey(id=key_id, user_id=user_id, name=name, is_shared=is_shared, created_at=tx.now)
            record(tx, actor, change_of("upstream_key", key_id, None, key))
            return key_id

        return await self._database.write(add)

    async def key(self, key_id: int) -> bytes | None:
        """See `catalog.Catalog`."""
        query = sa.select(keys.c.sealed).where(keys.c.id == key_id)
        return await self._database.read(lambda conn, _: conn.execute(query).scalar_one_or_none())

    async def known_key(self, key_id: int) -> UpstreamKey | None:
        """See `catalog.Catalog`."""
        query = sa.select(*_KEY).where(keys.c.id == key_id)
        row = await self._database.read(lambda conn, _: conn.execute(query).mappings().one_or_none())
        return None if row is None else UpstreamKey(**row)

    async def keys(self, user_id: int | None, *, after_id: int = 0, limit: int = 50) -> list[UpstreamKey]:
        """See `catalog.Catalog`."""
        is_usable = sa.true() if user_id is None else (keys.c.user_id == user_id) | keys.c.is_shared
        query = sa.select(*_KEY).where(~_OF_MODEL, is_usable, keys.c.id > after_id).order_by(keys.c.id).limit(limit)
        rows = await self._database.read(lambda conn, _: conn.execute(query).mappings().all())
        return [UpstreamKey(**row) for row in rows]

    async def drop_key(self, key_id: int) -> bool:
        """See `catalog.Catalog`."""
        actor = current_actor()
        delete = sa.delete(keys).where(keys.c.id == key_id).returning(*_KEY)

        def drop(tx: Tx) -> bool:
            lock(tx, "models")
            row = tx.conn.execute(delete).mappings().one_or_none()
            if row is None:
                return False
            record(tx, actor, change_of("upstream_key", key_id, UpstreamKey(**row), None))
            bump(tx, "models")
            return True

        return await self._database.write(drop)


def _add_key(tx: Tx, user_id: int | None, name: str, sealed: bytes, *, is_shared: bool = False) -> int:
    """Insert a key and return its id, which no key had before.

    Jobs and tokens refer to keys by id, also to deleted ones, and SQLite would assign the id of a deleted row again.
    """
    highest = tx.conn.execute(sa.select(sa.func.max(keys.c.id))).scalar_one() or 0
    key_id = max(bump(tx, "models"), highest + 1)
    values = {"user_id": user_id, "name": name, "sealed": sealed, "is_shared": is_shared, "created_at": tx.now}
    tx.conn.execute(sa.insert(keys).values(id=key_id, **values))
    return key_id


def _delete_own_keys(tx: Tx, key_ids: set[int]) -> None:
    """Delete those of the keys that belong to a model."""
    tx.conn.execute(sa.delete(keys).where(keys.c.id.in_(key_ids), _OF_MODEL))


def _clear_other_defaults(tx: Tx, name: str) -> None:
    for other in tx.conn.execute(sa.select(models.c.model).where(models.c.name != name)).scalars().all():
        if other.default:
            _replace_model(tx, msgspec.structs.replace(other, default=False))


def _replace_model(tx: Tx, model: Model) -> None:
    tx.conn.execute(sa.delete(models).where(models.c.name == model.name))
    tx.conn.execute(sa.insert(models).values(name=model.name, model=model, updated_at=tx.now))
