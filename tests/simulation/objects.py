"""In-memory objects of upstreams: the jobs that created them, and the marks of those under review."""

from __future__ import annotations

from collections.abc import Sequence

from signoff.core.job import Job
from signoff.core.upstream_objects import ids_in_answer
from signoff.stores.objects_schema import held_objects
from simulation.tables import Connection, Tables, Tx


class MemoryUpstreamObjects:
    """In-memory implementation of `store.UpstreamObjects`."""

    def __init__(self, tables: Tables, connection: Connection) -> None:
        self._tables = tables
        self._connection = connection

    async def creators(self, object_ids: Sequence[str]) -> dict[str, Job]:
        return await self._connection.send(lambda _: self._creators({*object_ids}), writes=False)

    async def held(self, object_ids: Sequence[str]) -> set[str]:
        return await self._connection.send(lambda _: self._tables.held_objects & {*object_ids}, writes=False)

    async def hold(self, object_ids: Sequence[str]) -> None:
        def hold(tx: Tx) -> None:
            for object_id in object_ids:
                tx.add_missing(held_objects, {"object_id": object_id, "held_at": tx.now})

        await self._connection.send(hold, writes=True)

    def _creators(self, object_ids: set[str]) -> dict[str, Job]:
        creators = dict[str, Job]()
        for job in sorted(self._tables.jobs.values(), key=lambda job: job.id):
            created = set[str]()
            if job.upstream_object_id is not None:
                created = {job.upstream_object_id} | ids_in_answer(job.response or b"", job.body)
            for object_id in (created | self._created_before(job)) & object_ids:
                creators.setdefault(object_id, job)
        return creators

    def _created_before(self, job: Job) -> set[str]:
        """Return the ids in the answers of all rounds, also of those that were edited or sent back."""
        created = set[str]()
        for event, data in self._tables.events.get(job.id, ()):
            if (object_id := event.data.get("upstream_object_id")) is not None:
                created |= {object_id} | ids_in_answer(data, job.body)
        return created
