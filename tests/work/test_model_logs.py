"""The logs of models: the same from every process of every host, bounded, and never blocking."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.fernet import Fernet
from structlog.testing import capture_logs

from fakes.programs import JSON_LINES_MODEL
from signoff.core.log import LogLine
from signoff.errors import Overloaded
from signoff.runtime import logs
from signoff.runtime.logs import ModelLogWriter
from simulation.catalog import MemoryModelLogs
from simulation.store import Near
from simulation.tables import Tables
from support.processes import ask, clean_environment, free_port, served, signoff, until
from support.stores import until as soon


class UnreliableModelLogs(MemoryModelLogs):
    """A store of model logs that can be made unavailable."""

    is_away = False

    async def add(self, lines: Sequence[tuple[str, LogLine]], *, max_lines: int) -> None:
        if self.is_away:
            raise Overloaded
        await super().add(lines, max_lines=max_lines)


def new_store() -> UnreliableModelLogs:
    """Return an empty store of model logs."""
    tables = Tables()
    return UnreliableModelLogs(tables, Near(tables, lambda: 0))


@contextlib.asynccontextmanager
async def running_writer(store: UnreliableModelLogs) -> AsyncIterator[ModelLogWriter]:
    """Yield a log writer that writes to `store` while the block lasts."""
    times = iter(range(1_000_000))
    writer = ModelLogWriter(store, lambda: next(times))
    task = asyncio.ensure_future(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.wait([task])


def texts_of(entries: list[LogLine]) -> list[str]:
    """Return the texts of the lines."""
    return [entry.text for entry in entries]


@pytest.mark.anyio
async def test_lines_are_stored_after_a_moment_and_when_the_writer_stops() -> None:
    store = new_store()
    async with running_writer(store) as first, running_writer(store) as second:
        first.add("m", "info", "one\0")

        async def stored_lines() -> Any:
            return await store.read("m", 10)

        assert texts_of(await soon(stored_lines)) == ["one�"]
        second.add("m", "error", "two")
        assert texts_of(await second.read("m")) == ["one�", "two"]
        assert texts_of(await first.read("m")) == ["one�", "two"]
        first.add("m", "info", "three")
        first.add("other", "info", "stays")
        await first.clean("m")
        assert await second.read("m") == []
        first.add("m", "info", "last")
    assert texts_of(await store.read("m", 10)) == ["last"]
    assert texts_of(await store.read("other", 10)) == ["stays"]


@pytest.mark.anyio
async def test_lines_wait_for_an_unavailable_store_and_dropped_ones_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "MAX_PENDING_LINES", 50)
    monkeypatch.setattr(logs, "BATCH_SECONDS", 0.01)
    store = new_store()
    with capture_logs() as events:
        async with running_writer(store) as writer:
            store.is_away = True
            for number in range(60):
                writer.add("m", "info", str(number))

            async def drop_events() -> Any:
                return [event for event in events if event["event"].startswith("model_log_lines_dropped")]

            [event] = await soon(drop_events)
            assert event["lines"] == 10
            with pytest.raises(Overloaded):
                await writer.read("m")
            store.is_away = False
            assert texts_of(await writer.read("m")) == [str(number) for number in range(10, 60)]


def test_a_log_can_be_read_and_cleared_from_every_host(tmp_path: Path, postgres_url: str) -> None:
    # given two hosts, each with its own directory and therefore its own process of the model
    ports, token, hosts = (free_port(), free_port()), "", list[dict[str, str]]()
    more = {"SIGNOFF_DATABASE_URL": postgres_url, "SIGNOFF_SECRET_KEY": Fernet.generate_key().decode()}
    for host in ("a", "b"):
        (tmp_path / host).mkdir()
        hosts.append(clean_environment(tmp_path / host / "data", **more))
    signoff(hosts[0], "migrate")
    token = signoff(hosts[0], "token", "create", "a@b.c", "--role", "admin", "--quiet").strip()
    command = quote(shlex.join([sys.executable, "-S", str(JSON_LINES_MODEL)]))
    with served(hosts[0], tmp_path / "a", ports[0]), served(hosts[1], tmp_path / "b", ports[1]):
        ask(ports[0], f"/post/addmodel?id=m&type=subprocessmodel&dest={command}", token, {})
        pids = {ask(port, "/post/predict?id=m", token, {"at": port})["pid"] for port in ports}
        assert len(pids) == 2
        # then each returns the lines of both
        for port in ports:
            entries = until(lambda port=port: _two_entries(ask(port, "/get/getlogs?id=m", token)))
            assert [entry["text"] for entry in entries] == ["ready", "ready"]
        # and when one clears the log, it is empty at the other
        ask(ports[1], "/post/cleanlogs?id=m", token, {})
        assert [ask(port, "/get/getlogs?id=m", token) for port in ports] == [[], []]


def _two_entries(entries: list[Any]) -> list[Any] | None:
    """Return the entries if there are two; else None."""
    return entries if len(entries) == 2 else None
