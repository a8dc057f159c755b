"""Objects that upstreams store, in SQL: the jobs that created them, and the marks of those under review."""

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from signoff.core.job import Job
from signoff.stores.calls import job_of_call
from signoff.stores.database import Database
from signoff.stores.job_pages import chunked, jobs_by_id
from signoff.stores.objects_schema import created_objects, held_objects
from signoff.stores.schema import calls, jobs
from signoff.stores.transaction import Tx
from signoff.stores.transitions import EVERY_COLUMN, job_of

_IDS = sa.bindparam("ids", type_=sa.Text, expanding=True)
_JOBS_OF_OBJECTS = sa.select(created_objects.c.object_id, created_objects.c.job_id).where(
    created_objects.c.object_id.in_(_IDS)
)
_JOBS_BY_OBJECT = sa.select(*EVERY_COLUMN).where(jobs.c.upstream_object_id.in_(_IDS))
_CALLS_BY_OBJECT = sa.select(*calls.c).where(calls.c.upstream_object_id.in_(_IDS))
_HELD = sa.select(held_objects.c.object_id).where(held_objects.c.object_id.in_(_IDS))


class SqlUpstreamObjects:
    """Objects of upstreams in a SQL database; see `catalog.UpstreamObjects`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def creators(self, object_ids: Sequence[str]) -> dict[str, Job]:
        """See `catalog.UpstreamObjects`."""
        return await self._database.read(lambda conn, _: _creators(conn, object_ids))

    async def held(self, object_ids: Sequence[str]) -> set[str]:
        """See `catalog.UpstreamObjects`."""

        def read(conn: Connection, _: object) -> set[str]:
            return {row.object_id for ids in chunked(object_ids) for row in conn.execute(_HELD, {"ids": ids})}

        return await self._database.read(read)

    async def hold(self, object_ids: Sequence[str]) -> None:
        """See `catalog.UpstreamObjects`."""

        def hold(tx: Tx) -> None:
            for object_id in object_ids:
                tx.add_missing(held_objects, {"object_id": object_id, "held_at": tx.now})

        await self._database.write(hold)


def _creators(conn: Connection, object_ids: Sequence[str]) -> dict[str, Job]:
    creators = dict[str, Job]()
    for ids in chunked(object_ids):
        jobs_of_parts = {row.object_id: row.job_id for row in conn.execute(_JOBS_OF_OBJECTS, {"ids": ids})}
        by_id = jobs_by_id(conn, sorted({*jobs_of_parts.values()}))
        _add_first(creators, ((each, by_id[job_id]) for each, job_id in jobs_of_parts.items() if job_id in by_id))
        by_object = [job_of(row) for row in conn.execute(_JOBS_BY_OBJECT, {"ids": ids})]
        by_object += [job_of_call(row) for row in conn.execute(_CALLS_BY_OBJECT, {"ids": ids})]
        _add_first(creators, ((job.upstream_object_id or "", job) for job in by_object))
    return creators


def _add_first(creators: dict[str, Job], pairs: Iterable[tuple[str, Job]]) -> None:
    """Add the job of each object; of several jobs with one object, the first one counts."""
    for object_id, job in pairs:
        if object_id not in creators or job.id < creators[object_id].id:
            creators[object_id] = job
