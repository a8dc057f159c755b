"""PostgreSQL: processes hear of each other's changes, and a lost connection loses no job and no answer."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from contracts.test_streams import a_stream
from signoff.core.filters import JobFilter
from signoff.core.limits import Limit
from signoff.core.model import Model
from signoff.core.pipelines.composed import Prompt
from signoff.core.postgres_address import parse_postgres_address
from signoff.core.price import Price
from signoff.errors import BadRequest, Overloaded, SchemaOutdated
from signoff.store import Topic
from signoff.stores import limits, postgres, postgres_changes, postgres_connection, schema
from signoff.stores.changes import ChangeFeed, pack_changes
from signoff.stores.postgres import Postgres
from signoff.stores.postgres_changes import MAX_PAYLOAD_BYTES, MAX_UNSENT, PostgresChangeFeed
from signoff.stores.sql import SqlStore
from signoff.stores.transaction import Tx
from support.preloaded import PreloadedProcess
from support.stores import (
    ANSWER,
    ChangeRecorder,
    a_step,
    held,
    inserted,
    is_refused,
    leased,
    listening,
    opened,
    reserved,
    rows,
    settled,
    together,
    until,
)

pytestmark = pytest.mark.anyio

MIGRATE_SCRIPT = """
import asyncio, sys
from signoff.stores.sql import SqlStore
asyncio.run(SqlStore(sys.argv[1]).migrate())
"""
PRICE = Price(model="gpt", valid_from=10, input=1, output=1)
TESTS = Path(__file__).parents[1]


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[SqlStore]:
    """Yield a store in a new database."""
    async with opened(postgres_url) as store:
        yield store


@pytest.fixture
async def recorder(postgres_url: str) -> AsyncIterator[ChangeRecorder]:
    """Yield a listener to another store on that database, which never writes."""
    async with listening(postgres_url) as (_, recorder):
        yield recorder


# Several processes


async def test_changes_by_another_process_arrive(postgres_url: str, recorder: ChangeRecorder) -> None:
    [output] = await outputs_of(start("-m", "support.writes", postgres_url, "other", "3"))

    lines = dict.fromkeys(output.split("\n"))
    ids = [line.removeprefix("inserted ") for line in lines if line.startswith("inserted ")]
    assert len(ids) == 3
    for job_id in ids:
        await recorder.hears(("job", job_id))
        await recorder.hears(("due", job_id))


async def test_the_last_change_before_closing_is_announced_too(postgres_url: str, recorder: ChangeRecorder) -> None:
    async with opened(postgres_url) as other:
        await other.catalog.put_model(Model(name="new", kind="echo"))

    await recorder.hears(("models", ""))


async def test_a_store_hears_its_own_changes_once(postgres_url: str, store: SqlStore, recorder: ChangeRecorder) -> None:
    async with listening(postgres_url) as (own_store, own_recorder):
        job = await inserted(own_store)
        await recorder.hears(("job", job.id))  # so the change has passed through the server
        later = await inserted(store)
        await own_recorder.hears(("job", later.id))  # and so have all earlier changes

    assert own_recorder.recorded.count(("job", job.id)) == 1


async def test_processes_that_migrate_at_once_make_one_schema(empty_postgres_url: str) -> None:
    await outputs_of(*(start("-c", MIGRATE_SCRIPT, empty_postgres_url) for _ in range(3)))

    async with opened(empty_postgres_url) as store:
        await inserted(store)


async def test_processes_that_write_at_once_lose_nothing(postgres_url: str, store: SqlStore) -> None:
    outputs = await outputs_of(
        *(start("-m", "support.writes", postgres_url, f"p{number}", "100") for number in range(3))
    )

    lines = [line for output in outputs for line in output.splitlines()]
    settled = [line for line in lines if line.startswith("settled ")]
    jobs = await store.jobs.list(JobFilter(limit=1000))
    assert {f"inserted {job.id}" for job in jobs} == {line for line in lines if line.startswith("inserted ")}
    assert len(settled) == len({*settled})
    assert {f"settled {job.id}" for job in jobs if job.status == "success"} == {*settled}


async def test_an_old_schema_names_the_command_that_helps(empty_postgres_url: str) -> None:
    store = SqlStore(empty_postgres_url)
    with pytest.raises(SchemaOutdated, match="signoff migrate"):
        await store.start()
    await store.close()


# A connection that can be cut


class Wire:
    """A proxy that can cut or silence its connections before a COMMIT arrives or before its response returns."""

    def __init__(self, url: str) -> None:
        self.server = urlsplit(url)
        self.cut: str | None = None
        self.cuts = 0
        self.refuses = False
        self.refused = 0
        self.near = set[asyncio.StreamWriter]()
        self.silent = set[asyncio.StreamWriter]()

    def go_away(self) -> None:
        """End all connections, and accept no more."""
        self.refuses = True
        for writer in self.near:
            writer.transport.abort()

    def fall_silent(self) -> None:
        """Keep all connections, and forward nothing any more."""
        self.silent |= self.near

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        if self.refuses:
            self.refused += 1
            writer.close()
            return
        self.near.add(writer)
        far_reader, far_writer = await asyncio.open_connection(self.server.hostname, self.server.port)
        back = asyncio.ensure_future(self._pass_on(far_reader, writer))
        try:
            while data := await reader.read(65536):
                if b"COMMIT" in data and self.cut == "silence":
                    self.cut, self.cuts = None, self.cuts + 1
                    far_writer.write(data)
                    self.silent.add(writer)
                elif b"COMMIT" in data and self.cut:
                    await self._cut(self.cut, data, far_writer, back, writer)
                    return
                if writer not in self.silent:
                    far_writer.write(data)
        except (ConnectionError, RuntimeError):  # uvloop raises RuntimeError if the transport is closed
            pass
        finally:
            far_writer.close()
            writer.close()

    async def _cut(
        self,
        where: str,
        data: bytes,
        far: asyncio.StreamWriter,
        back: "asyncio.Future[None]",
        near: asyncio.StreamWriter,
    ) -> None:
        self.cut, self.cuts = None, self.cuts + 1
        back.cancel()
        if where == "after":
            far.write(data)
            await far.drain()
        near.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            while data := await reader.read(65536):
                if writer not in self.silent:
                    writer.write(data)
        writer.close()


@pytest.fixture
def wire(postgres_url: str) -> Wire:
    """Return a proxy to the test's database, which does not listen yet."""
    return Wire(postgres_url)


@contextlib.asynccontextmanager
async def store_through(wire: Wire) -> AsyncIterator[SqlStore]:
    """Yield a store that is connected through the proxy."""
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with opened(wire.server._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()) as store:
            yield store
    finally:
        server.close()


# Lost connections


async def test_after_the_server_ended_every_connection_reads_and_writes_go_on(
    postgres_url: str, store: SqlStore
) -> None:
    job = await leased(store)
    await together(store.jobs.get(job.id) for _ in range(20))  # every reader has a connection

    await end_connections(postgres_url)

    assert await together(store.jobs.get(job.id) for _ in range(20)) == [job] * 20
    assert (await store.jobs.transition(job.id, a_step("succeed"))).status == "success"
    assert await store.is_ready() is True


async def test_changes_arrive_again_after_the_server_ended_every_connection(
    postgres_url: str, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_changes, "PROBE_SECONDS", 1000)
    async with listening(postgres_url) as (_, recorder):
        await end_connections(postgres_url)

        await recorder.hears(("any", ""))
        job = await inserted(store)
        await recorder.hears(("job", job.id))


async def test_a_connection_that_falls_silent_is_replaced(
    wire: Wire, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_changes, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(postgres_changes, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 0.5)
    async with store_through(wire) as listener:
        recorder = ChangeRecorder(listener)
        job = await inserted(store)
        await recorder.hears(("job", job.id), ("any", ""))  # so the feed is connected
        assert await listener.jobs.get(job.id) == job
        await inserted(listener)

        wire.fall_silent()
        recorder.recorded.clear()

        assert await listener.jobs.get(job.id) == job
        await inserted(listener)
        await recorder.hears(("any", ""))
        recorder.recorded.clear()
        later = await inserted(store)
        await recorder.hears(("job", later.id), ("any", ""))


async def test_writes_go_on_while_connections_end_again_and_again(postgres_url: str, store: SqlStore) -> None:
    async def end_again_and_again() -> None:
        for _ in range(15):
            await end_connections(postgres_url)

    async def work(number: int) -> str:
        job = await leased(store, idempotency_key=str(number))
        await store.jobs.transition(job.id, a_step("hold", changes={"response": ANSWER}))
        return job.id

    ending = asyncio.ensure_future(end_again_and_again())
    ids = [job_id for turn in range(10) for job_id in await together(work(10 * turn + number) for number in range(10))]
    await ending

    assert {job.id for job in await store.jobs.list(JobFilter(status="human", limit=1000))} == {*ids}
    by_job = sa.select(schema.events.c.job_id, sa.func.count().label("moves")).group_by(schema.events.c.job_id)
    assert {row["moves"] for row in await rows(store, by_job)} == {2}


async def test_one_connection_that_falls_silent_makes_the_store_replace_all(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given reads that have opened all connections of the pool
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 6)
    async with store_through(wire) as listener:
        job = await inserted(listener)
        await together(listener.jobs.get(job.id) for _ in range(20))
        # when the network falls silent, and one read has noticed
        wire.fall_silent()
        assert await listener.jobs.get(job.id) == job
        # then no other read has to wait for its time limit
        with capture_logs() as logs:
            assert await together(listener.jobs.get(job.id) for _ in range(20)) == [job] * 20
        assert logs == []


@pytest.mark.parametrize("where", ["before", "after", "silence"])
async def test_a_commit_whose_response_is_lost_happens_once(
    wire: Wire, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 0.5)
    async with store_through(wire) as store:
        job = await held(store, attempt=1)

        wire.cut = where
        cancelled = await store.jobs.transition(job.id, a_step("cancel", changes={"priority": 9}))
        wire.cut = where
        new = await inserted(store)
        wire.cut = where
        [claimed] = await store.jobs.claim(actor="worker", lease="l", limit=5, lease_seconds=60)

        assert wire.cuts == 3
        assert (cancelled.status, cancelled.seq) == ("fail", job.seq + 1)
        assert (claimed.id, claimed.attempt) == (new.id, 1)
        assert [event.verb for event in await store.jobs.events(job.id)] == ["submit", "hold", "cancel"]
        assert [event.verb for event in await store.jobs.events(new.id)] == ["submit", "claim"]


async def test_a_commit_with_an_unknown_outcome_is_an_error(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "READ_SECONDS", 0.2)
    async with store_through(wire) as store:
        job = await leased(store)
        database = store._database
        assert isinstance(database, Postgres)
        await database._open_engines().reading.dispose()

        wire.cut, wire.refuses = "after", True
        with pytest.raises(Overloaded, match="lost during a commit"):
            await store.jobs.transition(job.id, a_step("succeed"))

        wire.refuses = False
        stored = await store.jobs.get(job.id)
        assert stored is not None
        assert stored.seq <= 2, "whatever it was, it was not done twice"
        await inserted(store)


async def test_usage_counts_once_though_the_outcome_of_its_commit_is_unknown_for_long(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store_through(wire) as store:
        reservation = await reserved(store, Limit(scope="all", tokens_per_day=100), 50)
        for module in (postgres, limits):
            monkeypatch.setattr(module, "WRITE_TIMEOUT_SECONDS", 0.05)
        monkeypatch.setattr(postgres, "READ_SECONDS", 0.05)
        database = store._database
        assert isinstance(database, Postgres)
        await database._open_engines().reading.dispose()

        wire.cut, wire.refuses = "after", True
        settling = asyncio.ensure_future(settled(store, reservation, 30))
        await until(lambda: has_refused(wire, 5))
        wire.refuses = False
        counter = await settling

        assert (counter.day.tokens, counter.pending) == (30, ())


async def has_refused(wire: Wire, times: int) -> bool:
    return wire.refused >= times


async def test_while_the_server_is_away_writes_wait_and_then_give_up(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "READ_SECONDS", 0.2)
    async with store_through(wire) as store:
        wire.go_away()
        waiting = asyncio.ensure_future(inserted(store))
        with pytest.raises(Overloaded):
            await store.jobs.count(JobFilter(), at_most=10_000)
        assert await store.is_ready() is False
        assert not waiting.done()
        wire.refuses = False
        assert (await waiting).status == "bot"

        monkeypatch.setattr(postgres, "WRITE_TIMEOUT_SECONDS", 0.2)
        wire.go_away()
        with pytest.raises(Overloaded):
            await inserted(store)


# Locks

WAITING_QUERY = """
SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
"""
CATALOG_CHANGES: dict[
    str, tuple[str, Callable[[SqlStore], Awaitable[object]], Callable[[SqlStore], Awaitable[bool]]]
] = {
    "models": (
        "models",
        lambda s: s.catalog.put_model(Model(name="m", kind="echo")),
        lambda s: s.catalog.drop_model("m"),
    ),
    "keys": ("models", lambda s: s.catalog.add_key(1, "k", b"k"), lambda s: s.catalog.drop_key(1)),
    "limits": ("limits", lambda s: s.limits.put_limit(Limit(scope="all")), lambda s: s.limits.drop_limit("all")),
    "prices": ("prices", lambda s: s.usage.put_price(PRICE), lambda s: s.usage.drop_price("gpt", 10)),
    "streams": ("streams", lambda s: s.streams.put(a_stream("s")), lambda s: s.streams.drop("s")),
    "compositions": (
        "compositions",
        lambda s: s.library.put(Prompt(name="p", body="b", user_id=1)),
        lambda s: s.library.share(1, shared=True),
    ),
}


@pytest.mark.parametrize("table", CATALOG_CHANGES)
async def test_a_catalog_change_locks_its_version_before_any_row(
    table: str, postgres_url: str, store: SqlStore
) -> None:
    topic, put, change = CATALOG_CHANGES[table]
    await store.people.put_user("ann@example.com", "user")
    await put(store)
    outsider = await asyncpg.connect(postgres_url)

    async def waits() -> bool:
        return await outsider.fetchval(WAITING_QUERY) > 0

    async with outsider.transaction():
        await outsider.execute("SELECT * FROM versions WHERE topic = $1 FOR UPDATE", topic)
        changing = asyncio.ensure_future(change(store))
        await until(waits)
        await outsider.execute(f"SELECT * FROM {table} FOR UPDATE NOWAIT")
    assert await changing
    await outsider.close()


# Connections


async def test_slow_reads_do_not_delay_writes(store: SqlStore, postgres_url: str) -> None:
    # given more reads than connections, all of which wait for a lock
    outsider = await asyncpg.connect(postgres_url)
    await outsider.execute("SELECT pg_advisory_lock(7)")
    slow = sa.select(sa.func.pg_advisory_xact_lock_shared(7))
    reads = [asyncio.ensure_future(rows(store, slow)) for _ in range(15)]
    await until(lambda: is_lock_awaited(postgres_url))

    await inserted(store)

    assert not any(read.done() for read in reads)
    await outsider.close()
    await together(reads)


async def test_a_connection_that_ends_at_once_is_a_temporary_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a server that accepts a connection and shuts down at once
    async def accept_and_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4))
        await reader.readexactly(size - 4)
        error_fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
        settings = (b"server_version\x0015.0\0", b"client_encoding\0UTF8\0")
        ready = b"R\0\0\0\x08\0\0\0\0" + b"".join(message(b"S", setting) for setting in settings) + b"Z\0\0\0\x05I"
        writer.write(ready + message(b"E", error_fields))
        writer.close()

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4) + body

    monkeypatch.setattr(postgres, "READ_SECONDS", 0.1)
    async with await asyncio.start_server(accept_and_end, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = SqlStore(f"postgresql://ann@127.0.0.1:{port}/none?sslmode=disable")
        with pytest.raises(Overloaded):
            await store.versions()
        await store.close()


async def test_the_victim_of_a_deadlock_is_retried(postgres_url: str, store: SqlStore) -> None:
    first, second = await leased(store), await leased(store)
    # A longer timeout, so that PostgreSQL does not choose this connection as the victim.
    outsider = await asyncpg.connect(postgres_url, server_settings={"deadlock_timeout": "30s"})

    async with outsider.transaction():
        await outsider.execute("UPDATE jobs SET priority = 1 WHERE id = $1", second.id)
        renewing = asyncio.ensure_future(store.jobs.renew({first.id: "mine", second.id: "mine"}, 1000))
        await until(lambda: is_lock_awaited(postgres_url))
        await outsider.execute("UPDATE jobs SET priority = 1 WHERE id = $1", first.id)

    assert await renewing == {first.id, second.id}
    await outsider.close()


async def test_a_text_that_the_server_cannot_store_fails_alone(store: SqlStore) -> None:
    async def insert(target: str) -> bool:
        try:
            return bool(await inserted(store, target=target))
        except BadRequest:
            return False

    assert await together(insert(target) for target in ("a", "b\0", "c")) == [True, False, True]
    assert [job.target for job in await store.jobs.list(JobFilter())] == ["a", "c"]


async def test_a_settlement_that_the_server_cannot_store_fails_alone(store: SqlStore) -> None:
    jobs = await together(leased(store) for _ in range(8))
    ids = [f"resp_{number}" if number != 3 else "resp_\0" for number in range(8)]

    calls = [
        store.jobs.transition(job.id, a_step("succeed", changes={"response": ANSWER, "upstream_object_id": name}))
        for job, name in zip(jobs, ids, strict=True)
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(result).__name__ for result in results] == ["Job"] * 3 + ["BadRequest"] + ["Job"] * 4
    assert await store.jobs.get(jobs[3].id) == jobs[3]
    for job, result in zip(jobs, results, strict=True):
        verbs = ["submit"] if isinstance(result, BadRequest) else ["submit", "succeed"]
        assert [event.verb for event in await store.jobs.events(job.id)] == verbs


async def test_a_process_that_was_stopped_in_a_transaction_does_not_keep_its_locks(store: SqlStore) -> None:
    show = sa.text("SHOW idle_in_transaction_session_timeout")

    assert await store._database.write(lambda tx: tx.conn.execute(show).scalar_one()) == "5s"


async def test_a_write_of_a_paused_process_succeeds_when_the_process_resumes(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "IDLE_SECONDS", 0.1)
    starts = list[float]()

    def write(tx: Tx) -> int:
        starts.append(time.monotonic())
        tx.conn.execute(sa.text("SELECT 1"))
        if len(starts) == 1:
            time.sleep(0.5)  # like a paused process, which does not run its event loop
        return tx.conn.execute(sa.text("SELECT 2")).scalar_one()

    async with opened(postgres_url) as store:
        assert await store._database.write(write) == 2
    assert len(starts) >= 2


async def test_a_job_that_a_lost_client_has_locked_blocks_nobody(postgres_url: str, store: SqlStore) -> None:
    # given a job whose lease has run out, and that a lost client has locked in a transaction
    job = await inserted(store, lease="theirs", lease_seconds=-1)
    outsider = await asyncpg.connect(postgres_url)
    lapse = a_step("lapse", to="bot", lease="theirs", after_seconds={"due_at": 0})
    async with outsider.transaction():
        await outsider.execute("UPDATE jobs SET priority = 1 WHERE id = $1", job.id)
        # when the lease lapses, then that transition is refused for now, and other writes go on
        async with asyncio.timeout(60):
            assert await is_refused(store, job, lapse)
            await inserted(store)
    assert (await store.jobs.transition(job.id, lapse)).lease is None
    await outsider.close()


async def test_an_address_may_contain_common_client_options(postgres_url: str) -> None:
    async with opened(postgres_url + "?sslmode=prefer&application_name=signoff") as store:
        await inserted(store)
        [row] = await rows(store, sa.select(sa.text("current_setting('application_name') AS name")))

    assert row == {"name": "signoff"}


# Payloads of notifications


def test_payloads_stay_below_the_servers_limit_and_lose_nothing() -> None:
    names = [f"job-{number:05}-é" for number in range(3000)]

    packed = pack_changes([("job", name) for name in names], MAX_PAYLOAD_BYTES)

    assert [line for payload in packed for line in payload.split("\n")] == [f"job {name}" for name in names]
    assert max(len(payload.encode()) for payload in packed) <= MAX_PAYLOAD_BYTES < 8000
    assert len(packed) < 10


def test_a_name_that_is_too_long_for_a_payload_becomes_any() -> None:
    assert pack_changes([("job", "x" * 9000), ("job", "y")], MAX_PAYLOAD_BYTES) == ["any \njob y"]
    assert pack_changes([], MAX_PAYLOAD_BYTES) == []


async def test_too_many_unsent_changes_become_any() -> None:
    feed = PostgresChangeFeed(parse_postgres_address("postgresql://nobody@127.0.0.1:1/none"), changes=ChangeFeed())
    changes: list[tuple[Topic, str]] = [("job", str(number)) for number in range(MAX_UNSENT + 1)]

    feed.publish(changes)

    assert feed._unsent == {("any", ""): None}


async def test_a_transaction_without_changes_sends_nothing() -> None:
    feed = PostgresChangeFeed(parse_postgres_address("postgresql://nobody@127.0.0.1:1/none"), changes=ChangeFeed())

    feed.publish([])

    assert not feed._wake.is_set()


# Helpers


def start(*words: str) -> PreloadedProcess:
    """Start a Python program."""
    return PreloadedProcess(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def outputs_of(*running: PreloadedProcess) -> list[str]:
    """Wait for the end of programs, and return what they printed; fail if one failed."""
    outputs = await together(asyncio.to_thread(process.communicate) for process in running)
    assert [process.returncode for process in running] == [0] * len(running), outputs
    return [output for output, _ in outputs]


async def end_connections(url: str) -> None:
    """End every other connection to this database on the side of the server."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    finally:
        await connection.close()


async def is_lock_awaited(url: str) -> bool:
    """Return True if a transaction waits for another's lock."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    finally:
        await connection.close()
