"""The access log: a line for each request, without what must not be in a log."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs
from yarl import URL

from signoff.core.filters import JobFilter
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio


def lines(events: list[MutableMapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Return method, path and status of each request in the log."""
    return [(each["method"], each["path"], each["status"]) for each in events if each["event"] == "request"]


async def logged(server: Live, method: str, path: str, **more: Any) -> MutableMapping[str, Any]:
    """Send a request, and return its line in the log."""
    with capture_logs() as events:
        async with server.http.request(method, URL(server.url + path, encoded=True), **more) as response:
            await response.read()

        async def line() -> MutableMapping[str, Any] | None:
            return next((event for event in events if event["event"] == "request"), None)

        logged_line = await until(line)
    assert (logged_line["log_level"], logged_line["duration_ms"] >= 0) == ("info", True)
    return logged_line


async def test_each_request_has_a_line_with_its_job(tmp_path: Path) -> None:
    async with live(tmp_path, access_log=True) as server:
        headers = {"authorization": f"Bearer {await server.token()}"}
        call = await logged(server, "POST", "/v1/chat/completions", headers=headers, json=chat("a secret"))
        assert lines([call]) == [("POST", "/v1/chat/completions", 200)]
        queued = await logged(server, "POST", "/api/jobs", headers=headers, json={"body": chat("a secret")})
        assert lines([queued]) == [("POST", "/api/jobs", 202)]
        _, listed = await server.ask("GET", "/api/jobs", headers=headers)
        assert {call["job_id"], queued["job_id"]} == {job["job_id"] for job in listed["data"]}
        refused = await logged(server, "GET", "/api/jobs?limit=1&token=a-secret")
        assert lines([refused]) == [("GET", "/api/jobs", 401)]
        assert "job_id" not in refused
        assert "secret" not in repr([call, queued, refused])


@pytest.mark.parametrize("prefix", ["/signin/", "//signin//", "/%73ignin/"])
async def test_the_code_of_a_sign_in_link_is_not_logged(prefix: str, tmp_path: Path) -> None:
    async with live(tmp_path, access_log=True) as server:
        line = await logged(server, "GET", f"{prefix}a-secret-code", allow_redirects=False)
        assert line["path"] == "/signin/…"
        assert "secret" not in repr(line)


async def test_the_code_of_a_sign_in_link_is_not_logged_with_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        monkeypatch.setattr("signoff.doors.session.sign_in_with_link", None)
        with capture_logs() as events:
            status, _ = await server.ask("GET", "/signin/a-secret-code", headers={"accept": "text/html"})
            assert status == 500
    [fault] = [event for event in events if event["event"] == "request_failed"]
    assert fault["path"] == "/signin/…"


async def test_a_client_that_leaves_before_the_answer_has_the_status_499(tmp_path: Path) -> None:
    async with live(tmp_path, access_log=True) as server:
        headers = {"authorization": f"Bearer {await server.token()}"}
        with capture_logs() as events:
            async with aiohttp.ClientSession(headers=headers) as http:
                request = http.post(server.url + "/v1/chat/completions", json=chat("hi", "echo/hang"))
                task = asyncio.ensure_future(request.__aenter__())

                async def has_started() -> bool | None:
                    return bool(await server.services.store.jobs.list(JobFilter())) or None

                await until(has_started)
                task.cancel()

            async def has_line() -> bool | None:
                return bool(lines(events)) or None

            await until(has_line)
        assert lines(events) == [("POST", "/v1/chat/completions", 499)]


async def test_without_the_setting_no_request_is_logged(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        with capture_logs() as events:
            assert (await server.ask("GET", "/health/live"))[0] == 200
        assert lines(events) == []
