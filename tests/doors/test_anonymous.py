"""Callers without a token: what pages of other sites cannot do in their name, and what nobody does without a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from signoff.asgi import Application
from signoff.commands.doctor import run_checks
from signoff.core.access import ROLES
from signoff.settings import Settings
from support.database_files import make_file
from support.live_server import chat, live

pytestmark = pytest.mark.anyio

FOREIGN: tuple[dict[str, str], ...] = (
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
)
COMMAND = {"name": "p", "kind": "subprocess", "command": "cat"}
STREAM = {"name": "s", "url": "redis://127.0.0.1:9", "requests": "a", "responses": "b"}
CHANGES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/api/models", COMMAND),
    ("POST", "/api/models", {"name": "h", "kind": "http", "url": "http://localhost", "key": "sk"}),
    ("PATCH", "/api/models/mine", {"command": "cat"}),
    ("PATCH", "/api/models/mine", {"url": "http://localhost"}),
    ("DELETE", "/api/models/mine", None),
    ("POST", "/api/models/mine?operation=start", None),
    ("POST", "/api/models/mine?operation=stop", None),
    ("POST", "/get/addmodel?id=p&type=subprocessmodel&dest=cat", None),
    ("GET", "/get/addmodel?id=p&type=subprocessmodel&dest=cat", None),
    ("POST", "/api/keys", {"name": "k", "key": "sk"}),
    ("DELETE", "/api/keys/1", None),
    ("POST", "/api/streams", STREAM),
    ("PATCH", "/api/streams/s", {"url": "redis://127.0.0.1:8"}),
    ("DELETE", "/api/streams/s", None),
)


@pytest.mark.parametrize("role", ROLES)
async def test_a_page_of_another_site_changes_nothing_as_an_anonymous_caller(role: str, tmp_path: Path) -> None:
    async with live(tmp_path, anonymous_role=role) as server:
        for foreign in FOREIGN:
            for method, path in (
                ("POST", "/enqueue"),
                ("POST", "/api/jobs"),
                ("POST", "/v1/chat/completions"),
                ("POST", "/api/openai/v1/chat/completions"),
                ("POST", "/generate?wait=0"),
                ("DELETE", "/api/cache"),
                ("PUT", "/api/limits/all"),
                ("POST", "/post/predict?id=echo"),
                ("GET", "/get/predict?id=echo"),  # asks a model too
            ):
                more = {"json": chat("hello")} if method == "POST" else {}
                assert (await server.ask(method, path, headers=foreign, **more))[0] == 403, (foreign, method, path)
        assert (await server.ask("GET", "/api/jobs"))[1]["data"] == []
        # reading is allowed, because the page cannot see what it reads
        assert (await server.ask("GET", "/api/jobs", headers=FOREIGN[0]))[0] == 200


async def test_an_anonymous_caller_that_is_no_page_of_another_site_is_served(tmp_path: Path) -> None:
    app = "https://app.example"
    async with live(tmp_path, anonymous_role="user", cors_origins=[app, "*"]) as server:
        own = {"origin": server.url}
        for headers in ({}, own, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": app}):
            assert (await server.ask("POST", "/enqueue", headers=headers, json=chat("hello")))[0] == 200, headers
            assert (await server.ask("GET", "/api/jobs", headers=headers))[0] == 200, headers
        # `*` is for pages with a token: any other page could read what only this network is to read
        token = await server.token()
        for origin in ("https://evil.example", "*.example"):
            headers = {"origin": origin}
            assert (await server.ask("POST", "/enqueue", headers=headers, json=chat("hello")))[0] == 403
            assert (await server.ask("GET", "/api/jobs", headers=headers))[0] == 403
            assert (await server.ask("GET", "/api/jobs", token, headers=headers))[0] == 200


@pytest.mark.parametrize("role", ROLES)
async def test_models_keys_and_streams_are_never_changed_without_a_token(role: str, tmp_path: Path) -> None:
    async with live(tmp_path, anonymous_role=role) as server:
        admin = await server.token("admin")
        await server.model("mine", kind="subprocess", command=("cat",))
        await server.ask("POST", "/api/streams", admin, json=STREAM)
        assert (await server.ask("POST", "/api/keys", admin, json={"name": "k", "key": "sk"}))[0] == 201
        for method, path, body in CHANGES:
            more = {} if body is None else {"json": body}
            assert (await server.ask(method, path, **more))[0] == 401, (method, path)
        assert [model.name for model in await server.services.store.catalog.models()] == ["mine"]
        assert [stream.name for stream in await server.services.store.streams.all()] == ["s"]
        # and with a token, they are
        assert (await server.ask("POST", "/api/models", admin, json=COMMAND))[0] == 201
        assert (await server.ask("DELETE", "/api/streams/s", admin))[0] == 204


async def test_a_name_that_a_page_can_have_serves_no_anonymous_caller(tmp_path: Path) -> None:
    async with live(tmp_path, anonymous_role="user", allowed_hosts=["Signoff"]) as server:
        token = await server.token()
        port = server.url.rpartition(":")[2]
        for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "a@evil.example", "[", ""):
            for host in (name, f"{name}:{port}"):
                for path in ("/api/jobs", "/v1/models", "/", "/jobs", "/get/getlogs?id=echo"):
                    status, _ = await server.ask("GET", path, headers={"host": host})
                    assert status == 421, (host, path)
                # a token cannot be guessed by a page, so the name does not matter with one
                assert (await server.ask("GET", "/api/jobs", token, headers={"host": host}))[0] == 200
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "10.1.2.3:80", "[::1]:8000", "signoff", "SIGNOFF.:80"):
            assert (await server.ask("GET", "/api/jobs", headers={"host": host}))[0] == 200, host


async def test_the_doctor_warns_of_anonymous_admins(tmp_path: Path) -> None:
    for role, is_warning in (("admin", True), ("user", False), (None, False)):
        results = await run_checks(Settings(data_dir=tmp_path / str(role), anonymous_role=role))
        check = next(each for each in results if each.name == "callers without a token")
        assert check.is_ok
        assert check.is_warning == is_warning
        assert ("may read and change" in check.detail) == is_warning


@pytest.mark.parametrize(("role", "warnings"), [("admin", 1), ("user", 0), (None, 0)])
async def test_a_starting_server_warns_of_anonymous_admins(role: Any, warnings: int, tmp_path: Path) -> None:
    settings, sent = Settings(data_dir=tmp_path / "data", anonymous_role=role), list[str]()
    make_file(tmp_path / "data" / "signoff.db")

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.shutdown" if sent else "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    try:
        with capture_logs() as events:
            await Application(settings, work=False)({"type": "lifespan"}, receive, send)
    finally:
        structlog.reset_defaults()  # a starting server sets up the log of the process
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert [event["event"] for event in events].count("anonymous_admin") == warnings
