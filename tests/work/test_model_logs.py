"""The logs of models: the same from every process of every host, bounded, and never in anybody's way."""

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


class Moody(MemoryModelLogs):
    """A store's part that can be away."""

    is_away = False

    async def add(self, lines: Sequence[tuple[str, LogLine]], *, max_lines: int) -> None:
        if self.is_away:
            raise Overloaded
        await super().add(lines, max_lines=max_lines)


def a_store() -> Moody:
    tables = Tables()
    return Moody(tables, Near(tables, lambda: 0))


@contextlib.asynccontextmanager
async def written(store: Moody) -> AsyncIterator[ModelLogWriter]:
    """Logs of a process, which go to the store while the block lasts."""
    times = iter(range(1_000_000))
    kept = ModelLogWriter(store, lambda: next(times))
    writing = asyncio.ensure_future(kept.run())
    try:
        yield kept
    finally:
        writing.cancel()
        await asyncio.wait([writing])


def texts(entries: list[LogLine]) -> list[str]:
    return [entry.text for entry in entries]


@pytest.mark.anyio
async def test_a_line_is_in_the_store_a_moment_later_and_at_the_end() -> None:
    store = a_store()
    async with written(store) as here, written(store) as there:
        here.add("m", "info", "one\0")

        async def heard() -> Any:
            return await store.read("m", 10)

        assert texts(await soon(heard)) == ["one�"]
        there.add("m", "error", "two")
        assert texts(await there.read("m")) == ["one�", "two"]
        assert texts(await here.read("m")) == ["one�", "two"]
        here.add("m", "info", "three")
        here.add("other", "info", "stays")
        await here.clean("m")
        assert await there.read("m") == []
        here.add("m", "info", "last")
    assert texts(await store.read("m", 10)) == ["last"]
    assert texts(await store.read("other", 10)) == ["stays"]


@pytest.mark.anyio
async def test_lines_wait_for_a_store_that_is_away_and_too_many_are_dropped_loudly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "MAX_PENDING_LINES", 50)
    monkeypatch.setattr(logs, "BATCH_SECONDS", 0.01)
    store = a_store()
    with capture_logs() as said:
        async with written(store) as here:
            store.is_away = True
            for number in range(60):
                here.add("m", "info", str(number))

            async def complained() -> Any:
                return [line for line in said if line["event"].startswith("model_log_lines_dropped")]

            [complaint] = await soon(complained)
            assert complaint["lines"] == 10
            with pytest.raises(Overloaded):
                await here.read("m")
            store.is_away = False
            assert texts(await here.read("m")) == [str(number) for number in range(10, 60)]


def test_a_log_is_read_and_emptied_from_every_host(tmp_path: Path, postgres_url: str) -> None:
    # given two hosts, each with its own folder, and so its own process of the model
    ports, token, hosts = (free_port(), free_port()), "", list[dict[str, str]]()
    for host in ("a", "b"):
        (tmp_path / host).mkdir()
        hosts.append(clean_environment(tmp_path / host / "data", SIGNOFF_DATABASE_URL=postgres_url))
    signoff(hosts[0], "migrate")
    token = signoff(hosts[0], "token", "create", "a@b.c", "--role", "admin", "--quiet").strip()
    command = quote(shlex.join([sys.executable, "-S", str(JSON_LINES_MODEL)]))
    with served(hosts[0], tmp_path / "a", ports[0]), served(hosts[1], tmp_path / "b", ports[1]):
        ask(ports[0], f"/post/addmodel?id=m&type=subprocessmodel&dest={command}", token, {})
        pids = {ask(port, "/post/predict?id=m", token, {"at": port})["pid"] for port in ports}
        assert len(pids) == 2
        # then each tells what both have written
        for port in ports:
            entries = until(lambda port=port: _both(ask(port, "/get/getlogs?id=m", token)))
            assert [entry["text"] for entry in entries] == ["ready", "ready"]
        # and what one empties is empty at the other
        ask(ports[1], "/post/cleanlogs?id=m", token, {})
        assert [ask(port, "/get/getlogs?id=m", token) for port in ports] == [[], []]


def _both(entries: list[Any]) -> list[Any] | None:
    return entries if len(entries) == 2 else None
