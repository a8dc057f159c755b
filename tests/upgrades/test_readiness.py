"""Processes on a database that another version has migrated: what they serve, and the one line that says why not."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from signoff.stores.migrations import MIN_COMPATIBLE
from signoff.stores.sql import SqlStore
from support.processes import (
    SIGNOFF,
    ask,
    first_token,
    free_port,
    migrated_environment,
    run_command,
    served,
    worked,
)
from support.revisions import NEWEST

pytestmark = pytest.mark.anyio

NEWER = 9042


@pytest.fixture
def environment(postgres_url: str, tmp_path: Path) -> dict[str, str]:
    """Return the environment of processes on a database with the newest schema."""
    return migrated_environment(tmp_path / "data", SIGNOFF_DATABASE_URL=postgres_url)


async def migrate_by_newer_version(url: str, *, min_compatible: int) -> None:
    """Leave in the database what the migration of a newer version does."""
    store = SqlStore(url)
    await store.start()
    await store._database.write(
        lambda tx: [
            tx.conn.execute(sa.text("UPDATE alembic_version SET version_num = :number"), {"number": str(NEWER)}),
            tx.conn.execute(
                sa.text("UPDATE versions SET version = :number WHERE topic = :topic"),
                {"number": min_compatible, "topic": MIN_COMPATIBLE},
            ),
        ]
    )
    await store.close()


def readiness(port: int, token: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of the readiness probe."""
    try:
        return 200, ask(port, "/health/ready", token)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


async def test_processes_serve_while_a_newer_version_expands_and_not_once_it_contracts(
    environment: dict[str, str], postgres_url: str, tmp_path: Path
) -> None:
    port = free_port()
    with served(environment, tmp_path, port, "--no-work"), worked(environment) as worker:
        token = first_token(tmp_path)
        await migrate_by_newer_version(postgres_url, min_compatible=int(NEWEST))
        assert readiness(port, token) == (200, {"store": True, "broker": True})
        job = ask(port, "/generate?wait=30", token, {"content": "hello", "meta": {"model": "echo"}})
        assert job["content"] == "hello"
        # when the next release takes away what this one needs
        await migrate_by_newer_version(postgres_url, min_compatible=NEWER - 1)
        # then the server is not ready, and the worker ends, both with the reason
        line = (
            f"This database is from a newer Signoff (schema {NEWER}, for versions with schema {NEWER - 1} or newer); "
            f"this version has schema {NEWEST}. Install the newer version."
        )
        assert readiness(port, token) == (503, {"store": True, "broker": True, "schema": line})
        assert worker.wait(60) == 1
        assert worker.stderr is not None
        assert worker.stderr.read().decode().splitlines()[-1] == line


@pytest.mark.parametrize(
    ("revision", "line"),
    [
        (
            str(NEWER),
            f"This database is from a newer Signoff (schema {NEWER}, for versions with schema {NEWER} or newer); ",
        ),
        ("0031", f"The schema has revision 0031; this version needs {NEWEST}. Run: signoff migrate"),
    ],
)
async def test_a_start_on_a_schema_that_does_not_fit_prints_one_line(
    revision: str, line: str, environment: dict[str, str], postgres_url: str
) -> None:
    await migrate_by_newer_version(postgres_url, min_compatible=NEWER)
    store = SqlStore(postgres_url)
    await store._database.change_schema(
        lambda conn: conn.execute(sa.text("UPDATE alembic_version SET version_num = :n"), {"n": revision})
    )
    await store.close()
    for command in (("serve", "--port", str(free_port())), ("work",)):
        result = run_command((*SIGNOFF, *command), env=environment)
        assert result.returncode == 1
        assert result.stdout == ""
        [only] = result.stderr.splitlines()
        assert only.startswith(line)
