"""Connections to PostgreSQL: what the operator reads if there is none, and poolers in transaction mode."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from fakes.pooler import pooled
from signoff.core.postgres_address import parse_postgres_address
from signoff.errors import SchemaOutdated
from signoff.server.bootstrap import migrate, run_services
from signoff.settings import Settings
from signoff.stores.postgres_connection import CannotConnect, is_behind_pooler, open_connection
from signoff.stores.sql import SqlStore
from support.live_server import chat, live, until
from support.stores import a_job

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("change", "text", "is_permanent"),
    [
        ({"path": "/missing"}, 'database "missing" does not exist. Create it', True),
        ({"query": "connect_tmeout=5"}, 'unrecognized configuration parameter "connect_tmeout". Remove', True),
        ({"user": "missing:s3cret"}, 'refuses the login: role "missing" does not exist', True),
        ({"query": "sslmode=verify-full&sslrootcert=system"}, "rejected SSL upgrade", False),
        ({"host": "127.0.0.1:1"}, "cannot be reached: connection refused", False),
        ({"host": "missing.invalid"}, "cannot be reached: ", False),
    ],
    ids=str,
)
async def test_a_fault_is_told_in_one_line_without_the_password(
    change: dict[str, str], text: str, is_permanent: bool, empty_postgres_url: str
) -> None:
    parts = urlsplit(empty_postgres_url)
    login, _, host = parts.netloc.rpartition("@")
    netloc = f"{change.get('user', login)}@{change.get('host', host)}"
    path, query = change.get("path", parts.path), change.get("query", parts.query)
    store = SqlStore(parts._replace(netloc=netloc, path=path, query=query).geturl())
    with pytest.raises(CannotConnect) as caught:
        await store.start()
    await store.close()
    assert text.lower() in str(caught.value).lower()
    assert change.get("host", host).partition(":")[0] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.is_permanent == is_permanent


async def test_an_empty_database_and_one_of_a_newer_version_are_told_apart(empty_postgres_url: str) -> None:
    with pytest.raises(SchemaOutdated, match=r"^The database is empty\. Run: signoff migrate$"):
        await SqlStore(empty_postgres_url).start()
    settings = Settings(database_url=empty_postgres_url)
    await migrate(settings)
    connection = await asyncpg.connect(empty_postgres_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9042'")
    await connection.execute("UPDATE versions SET version = 9041 WHERE topic = 'min_compatible_schema'")
    await connection.close()
    for attempt in (SqlStore(empty_postgres_url).start(), migrate(settings)):
        with pytest.raises(
            SchemaOutdated, match=r"^This database is from a newer Signoff \(schema 9042, .* 9041 .*\.$"
        ):
            await attempt


async def test_a_server_that_starts_before_its_database_waits_and_says_so_once(
    postgres_url: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    url = urlsplit(postgres_url)
    address = url._replace(netloc=f"{url.netloc.rpartition('@')[0]}@127.0.0.1:{port}").geturl()
    settings = Settings(data_dir=tmp_path, database_url=address)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(url.hostname, url.port)
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)

    async def start() -> bool:
        async with run_services(settings, work=False) as services:
            return await services.store.is_ready()

    with capture_logs() as logs:
        task = asyncio.ensure_future(start())
        await until(lambda: logged(logs, "database_unreachable"))
        async with await asyncio.start_server(forward, "127.0.0.1", port):
            assert await task


async def test_a_server_is_ready_while_it_can_write_and_the_check_changes_no_row(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    query = "SELECT ctid FROM versions WHERE topic = 'models'"

    async def is_ready() -> bool:
        store = SqlStore(postgres_url)
        await store.start()
        try:
            return await store.is_ready()
        finally:
            await store.close()

    before = await connection.fetchval(query)
    assert await is_ready()
    assert await connection.fetchval(query) == before
    database = postgres_url.rpartition("/")[2]
    await connection.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    assert not await is_ready()
    await connection.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def logged(logs: list[Any], event: str) -> Any:
    """Return the event, or None if it was not logged yet."""
    return next((entry for entry in logs if entry["event"] == event), None)


# Poolers


@pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": uses_uvloop}) for uses_uvloop in (False, True)],
    ids=["asyncio", "uvloop"],
)
async def test_connecting_can_be_cancelled_at_every_moment(postgres_url: str, anyio_backend: Any) -> None:
    # The test would fail with an exception that nobody retrieved.
    address = parse_postgres_address(postgres_url)
    turns, is_open = 0, False
    while not is_open:
        connecting = asyncio.ensure_future(open_connection(address, 10))
        for _ in range(turns):
            await asyncio.sleep(0)
        is_open = connecting.done() and not connecting.cancelled()
        connecting.cancel()
        await asyncio.wait([connecting])
        turns = turns + 1 if turns < 40 else turns * 2
    connection = connecting.result()
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    async def alone() -> bool | None:
        return await connection.fetchval(count) == 0 or None

    assert await until(alone)
    await connection.close()


async def test_a_pooler_is_detected_unless_the_address_tells(postgres_url: str) -> None:
    async with pooled(postgres_url) as url:
        assert await is_behind_pooler(parse_postgres_address(url))
        assert not await is_behind_pooler(parse_postgres_address(f"{url}?pgbouncer=false"))
    assert not await is_behind_pooler(parse_postgres_address(postgres_url))
    assert await is_behind_pooler(parse_postgres_address(f"{postgres_url}?pgbouncer=true"))


async def test_everything_works_through_a_pooler_in_transaction_mode(empty_postgres_url: str, tmp_path: Path) -> None:
    async with pooled(empty_postgres_url) as url:
        # a second migration finds the schema, and two servers share the database
        await migrate(Settings(database_url=url))
        async with live(tmp_path, database_url=url) as server, live(tmp_path, database_url=url) as other:
            token = await server.token("admin")
            answers = await asyncio.gather(
                *(server.ask("POST", "/v1/chat/completions", token, json=chat(f"hello {n}")) for n in range(20)),
                *(other.ask("POST", "/api/jobs", token, json={"body": chat(f"later {n}")}) for n in range(20)),
            )
            assert {status for status, _ in answers} == {200, 202}
            for _, job in answers[20:]:
                await server.job_when(token, job["job_id"], lambda job: job["status"] == "success")
            # a change in one process reaches the other
            await server.model("new")
            assert (await other.ask("GET", "/v1/models/new", token))[0] == 200
            # and a row that is not there is no error of the connection
            assert await server.services.store.jobs.get(a_job().id) is None
