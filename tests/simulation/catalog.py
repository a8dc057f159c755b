"""In-memory catalog: registered models, sealed keys of upstreams, other secrets, and the logs of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from signoff.catalog import SealedKind, SealedSecret
from signoff.core.access import UpstreamKey, check_key_count
from signoff.core.audit import change_of, encryption_key_changed
from signoff.core.log import LogLine
from signoff.core.model import EndpointName, Model, key_ids_of, with_existing_keys, with_new_keys, without_keys
from signoff.core.model_digest import model_digest
from signoff.errors import VersionConflict, name_taken
from signoff.infra.actor import current_actor
from signoff.stores.secrets import secret_of, with_sealed
from simulation.tables import Connection, Tables, Tx, bump, record

NO_ENDPOINTS: Mapping[EndpointName, bytes] = {}


class MemoryCatalog:
    """In-memory implementation of `catalog.Catalog`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def models(self) -> list[Model]:
        return await self._connection.send(
            lambda _: [model for _, model in sorted(self._tables.models.items())], writes=False
        )

    async def put_model(
        self,
        model: Model,
        *,
        sealed: bytes | None = None,
        sealed_at: Mapping[EndpointName, bytes] = NO_ENDPOINTS,
        drops_key: bool = False,
        is_new: bool = False,
        expected_digest: str | None = None,
    ) -> None:
        models, actor = self._tables.models, current_actor()

        def put(tx: Tx) -> None:
            old = models.get(model.name)
            if old is not None and is_new:
                raise name_taken(model.name)
            if expected_digest not in {None, old and model_digest(old)}:
                raise VersionConflict
            merged = model if old is None else with_existing_keys(model, old)
            merged = without_keys(merged) if drops_key else merged
            stored = with_new_keys(
                merged, lambda secret: self._add_key(tx, None, model.name, secret, is_shared=False), sealed, sealed_at
            )
            if old is not None:
                self._drop_own_keys({*key_ids_of(old)} - {*key_ids_of(stored)})
            if model.default:
                models.update({name: msgspec.structs.replace(other, default=False) for name, other in models.items()})
            models[model.name] = stored
            record(self._tables, tx, actor, change_of("model", model.name, old, stored))
            bump(self._tables, tx, "models")

        await self._connection.send(put, writes=True)

    async def drop_model(self, name: str) -> bool:
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            dropped = self._tables.models.pop(name, None)
            if dropped is None:
                return False
            self._drop_own_keys({*key_ids_of(dropped)})
            record(self._tables, tx, actor, change_of("model", name, dropped, None))
            bump(self._tables, tx, "models")
            return True

        return await self._connection.send(drop, writes=True)

    async def add_key(self, user_id: int, name: str, sealed: bytes, *, is_shared: bool = False) -> int:
        actor = current_actor()

        def add(tx: Tx) -> int:
            check_key_count(sum(key.user_id == user_id for key, _ in self._tables.sealed.values()) + 1)
            key_id = self._add_key(tx, user_id, name, sealed, is_shared)
            record(self._tables, tx, actor, change_of("upstream_key", key_id, None, self._tables.sealed[key_id][0]))
            return key_id

        return await self._connection.send(add, writes=True)

    async def key(self, key_id: int) -> bytes | None:
        row = await self._connection.send(lambda _: self._tables.sealed.get(key_id), writes=False)
        return None if row is None else row[1]

    async def known_key(self, key_id: int) -> UpstreamKey | None:
        row = await self._connection.send(lambda _: self._tables.sealed.get(key_id), writes=False)
        return None if row is None else row[0]

    async def keys(self, user_id: int | None, *, after_id: int = 0, limit: int = 50) -> list[UpstreamKey]:
        def read(_: Tx) -> list[UpstreamKey]:
            known = [key for key, _ in self._tables.sealed.values() if key.user_id is not None and key.id > after_id]
            return [key for key in known if user_id in {None, key.user_id} or key.is_shared][:limit]

        return await self._connection.send(read, writes=False)

    async def drop_key(self, key_id: int) -> bool:
        actor = current_actor()

        def drop(tx: Tx) -> bool:
            bump(self._tables, tx, "models")
            key, _ = self._tables.sealed.pop(key_id, (None, b""))
            if key is not None:
                record(self._tables, tx, actor, change_of("upstream_key", key_id, key, None))
            return key is not None

        return await self._connection.send(drop, writes=True)

    def _add_key(self, tx: Tx, user_id: int | None, name: str, sealed: bytes, is_shared: bool) -> int:
        self._tables.key_count += 1
        number = self._tables.key_count
        key = UpstreamKey(id=number, user_id=user_id, name=name, is_shared=is_shared, created_at=tx.now)
        self._tables.sealed[number] = (key, sealed)
        return number

    def _drop_own_keys(self, key_ids: set[int]) -> None:
        for key_id in key_ids & self._tables.sealed.keys():
            if self._tables.sealed[key_id][0].user_id is None:
                del self._tables.sealed[key_id]


class MemorySecrets:
    """In-memory implementation of `catalog.Secrets`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def page(self, kind: SealedKind, after: str | None, limit: int) -> list[SealedSecret]:
        secrets = await self._connection.send(lambda _: self._secrets(kind, after), writes=False)
        return secrets[:limit]

    def _secrets(self, kind: SealedKind, after: str | None) -> list[SealedSecret]:
        tables, start = self._tables, after or ""
        if kind == "key":
            of_keys = [(key.id, sealed) for key, sealed in tables.sealed.values() if key.id > int(after or 0)]
            return [SealedSecret(kind="key", id=str(key_id), sealed=sealed) for key_id, sealed in sorted(of_keys)]
        if kind == "receipt_key":
            return []  # the keys of this store are not sealed
        if kind == "job":
            of_jobs = [job for name, job in sorted(tables.jobs.items()) if job.deliver and name > start]
            return [secret_of(job.id, job.deliver) for job in of_jobs]
        if kind == "batch":
            sealed = {batch.id: batch.webhook for batch in tables.batches.values() if batch.webhook is not None}
        else:
            structs = tables.streams if kind == "stream" else tables.review_queues
            sealed = {name: struct.sealed or b"" for name, struct in structs.items()}
        return [
            SealedSecret(kind=kind, id=name, sealed=value) for name, value in sorted(sealed.items()) if name > start
        ]

    async def replace(self, old: SealedSecret, sealed: bytes) -> bool:
        def put(tx: Tx) -> bool:
            before = str(int(old.id) - 1) if old.kind == "key" else old.id[:-1]
            if old not in self._secrets(old.kind, before):
                return False
            self._put(tx, old, sealed)
            return True

        return await self._connection.send(put, writes=True)

    def _put(self, tx: Tx, old: SealedSecret, sealed: bytes) -> None:
        tables, place, replace = self._tables, old.id, msgspec.structs.replace
        if old.kind == "key":
            tables.sealed[int(place)] = (tables.sealed[int(place)][0], sealed)
        elif old.kind == "batch":
            tables.batches[place] = replace(tables.batches[place], webhook=sealed)
        elif old.kind == "stream":
            tables.streams[place] = replace(tables.streams[place], sealed=sealed)
            bump(tables, tx, "streams")
        elif old.kind == "review_queue":
            tables.review_queues[place] = replace(tables.review_queues[place], sealed=sealed)
            bump(tables, tx, "people")
        else:
            for delivery in tables.deliveries.values() if old.clear_url else ():
                if (delivery.job_id, delivery.kind) == (place, "webhook"):
                    tx.deliveries[delivery.id] = replace(delivery, address=delivery.host)
            tx.jobs[place] = replace(tables.jobs[place], deliver=with_sealed(tables.jobs[place].deliver, sealed))

    async def key_fingerprints(self) -> set[str]:
        return await self._connection.send(lambda _: {*self._tables.key_fingerprints}, writes=False)

    async def add_key_fingerprint(self, fingerprint: str, *, drops_others: bool = False) -> None:
        actor = current_actor()

        def add(tx: Tx) -> None:
            old = {*self._tables.key_fingerprints}
            new = {fingerprint} if drops_others else {fingerprint, *old}
            if new != old:
                record(self._tables, tx, actor, encryption_key_changed(old, new))
            if drops_others:
                self._tables.key_fingerprints.clear()
            self._tables.key_fingerprints.add(fingerprint)

        await self._connection.send(add, writes=True)


class MemoryModelLogs:
    """In-memory implementation of `catalog.ModelLogs`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def add(self, lines: Sequence[tuple[str, LogLine]], *, max_lines: int) -> None:
        def add(_: Tx) -> None:
            for model, entry in lines:
                log = self._tables.model_logs.setdefault(model, [])
                log.append(entry)
                del log[:-max_lines]

        await self._connection.send(add, writes=True)

    async def read(self, model: str, limit: int) -> list[LogLine]:
        return await self._connection.send(lambda _: self._tables.model_logs.get(model, [])[-limit:], writes=False)

    async def clean(self, model: str) -> None:
        await self._connection.send(lambda _: self._tables.model_logs.pop(model, None), writes=True)
