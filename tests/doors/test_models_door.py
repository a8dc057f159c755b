"""The native door of models: admins register, change, try and delete models of a running server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.programs import PLAIN_LINES_MODEL
from fakes.upstream import fake_upstream
from support.live_server import live

pytestmark = pytest.mark.anyio

PLAIN = (sys.executable, "-S", str(PLAIN_LINES_MODEL))


async def test_a_model_is_registered_tried_changed_and_deleted(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        admin = await server.token("admin")
        # given a model with a key, whose name has a slash
        new = {"name": "org/small", "kind": "http", "url": fake.at("mirror"), "key": "sk-secret"}
        status, created = await server.ask("POST", "/api/models", admin, json=new)
        assert status == 201
        assert (created["name"], created["has_key"], created["registered"], created["state"]) == (
            "org/small",
            True,
            True,
            None,
        )
        status, problem = await server.ask("POST", "/api/models", admin, json=new)
        assert (status, problem["code"]) == (409, "name_taken")
        # then a test request reaches its upstream with the key
        status, response = await server.ask("POST", "/api/models/org/small", admin, json={"any": [1]})
        assert (status, response["ok"], response["answer"]) == (200, True, {"any": [1]})
        assert fake.requests[-1].headers["authorization"] == "Bearer sk-secret"
        # when some fields are changed, the others stay
        change = {"url": fake.at("broken"), "attempts": 1, "timeouts": {"total_seconds": 9}}
        _, changed = await server.ask("PATCH", "/api/models/org/small", admin, json=change)
        assert {name for name in created if created[name] != changed[name]} == {"url", "attempts", "timeouts"}
        status, response = await server.ask("POST", "/api/models/org/small", admin, json=1)
        assert (status, response["ok"], response["error"]["status"]) == (200, False, 500)
        _, model = await server.ask("GET", "/api/models/org/small?health=true", admin)
        assert model == changed | {"health": {"ok": True, "detail": "accepts connections"}}
        # and no response contains the key
        _, listed = await server.ask("GET", "/api/models", admin)
        assert listed["data"][0] == changed
        assert "sk-secret" not in str(listed)
        # when it is deleted, every route answers 404
        assert (await server.ask("DELETE", "/api/models/org/small", admin))[0] == 204
        for method in ("GET", "PATCH", "DELETE", "POST"):
            assert (await server.ask(method, "/api/models/org/small", admin, json={}))[0] == 404


async def test_a_program_is_started_by_its_first_request_and_its_state_is_shown(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        new = {"name": "plain", "kind": "subprocess", "command": list(PLAIN)}
        assert (await server.ask("POST", "/api/models", admin, json=new))[1]["state"] == "stopped"
        assert (await server.ask("POST", "/api/models/plain", admin, json="four"))[1]["answer"] == {
            "length": 6,
            "of": "four",
        }
        _, model = await server.ask("GET", "/api/models/plain?health=true", admin)
        assert (model["state"], model["health"]) == ("ready", {"ok": True, "detail": "ready"})
        command = " ".join(f"'{word}'" for word in PLAIN)
        _, changed = await server.ask("PATCH", "/api/models/plain", admin, json={"command": command})
        assert changed["command"] == list(PLAIN)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"name": "m"},
        {"name": "m", "kind": "magic"},
        {"name": "m", "kind": "http"},
        {"name": "m", "kind": "http", "url": "ftp://x"},
        {"name": "m", "kind": "http", "url": "http://169.254.169.254/"},
        {"name": "m", "kind": "http", "url": "http://x", "command": "run"},
        {"name": "m", "kind": "subprocess"},
        {"name": "m", "kind": "subprocess", "command": []},
        {"name": "m", "kind": "subprocess", "command": "run 'a"},
        {"name": "m", "kind": "subprocess", "command": ["a\0b"]},
        {"name": "m", "kind": "echo", "idle_seconds": -1},
        {"name": "m", "kind": "echo", "timeouts": {"total_seconds": 0}},
        {"name": "m", "kind": "echo", "attempts": 0},
        {"name": "m", "kind": "echo", "colour": "red"},
        {"name": "", "kind": "echo"},
        {"name": "a*b", "kind": "echo"},
        {"name": "a\nb", "kind": "echo"},
        {"name": "m*", "kind": "echo", "default": True},
    ],
)
async def test_an_invalid_model_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        status, response = await server.ask("POST", "/api/models", await server.token("admin"), json=wrong)
        assert (status, response["status"]) == (400, 400)
        assert await server.services.store.catalog.models() == []


async def test_only_admins_see_and_change_models(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("mine")
        for role in ("user", "reviewer"):
            token = await server.token(role)  # type: ignore[arg-type]
            new = {"name": "m", "kind": "echo"}
            assert (await server.ask("POST", "/api/models", token, json=new))[0] == 403
            assert (await server.ask("GET", "/api/models", token))[0] == 403
            for method in ("GET", "PATCH", "DELETE", "POST"):
                assert (await server.ask(method, "/api/models/mine", token, json={}))[0] == 403
        assert (await server.ask("GET", "/api/models", None))[0] == 401


async def test_a_command_is_accepted_only_on_loopback_or_if_allowed(tmp_path: Path) -> None:
    async with live(tmp_path, host="0.0.0.0") as server:
        admin = await server.token("admin")
        new = {"name": "m", "kind": "subprocess", "command": "cat"}
        assert (await server.ask("POST", "/api/models", admin, json=new))[0] == 403
        # given a model that was registered on the command line, all fields but its command can be changed
        await server.model("there", kind="subprocess", command=("cat",))
        assert (await server.ask("PATCH", "/api/models/there", admin, json={"idle_seconds": 5}))[0] == 200
        for change in ({"command": "sh"}, {"serve": True}):
            assert (await server.ask("PATCH", "/api/models/there", admin, json=change))[0] == 403


async def test_an_unreachable_model_is_unhealthy(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        await server.model("lost", kind="http", url="http://127.0.0.1:9")
        _, model = await server.ask("GET", "/api/models/lost?health=true", admin)
        assert model["health"]["ok"] is False
        _, echo = await server.ask("GET", "/api/models/echo?health=true", admin)
        assert (echo["registered"], echo["health"]["ok"]) == (False, True)


async def test_a_model_that_is_built_in_exists_and_cannot_be_changed(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        status, problem = await server.ask("PATCH", "/api/models/echo", admin, json={"attempts": 1})
        assert (status, problem["code"]) == (409, "conflict")
        status, problem = await server.ask("PATCH", "/api/models/nowhere", admin, json={"attempts": 1})
        assert (status, problem["code"]) == (404, "model_not_found")


async def test_a_patch_changes_only_the_named_timeouts_and_limits(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        timeouts = {"connect_seconds": 1.0, "first_byte_seconds": 2.0, "between_chunks_seconds": 3.0}
        model = {"name": "m", "kind": "subprocess", "command": "cat", "timeouts": timeouts, "limits": {"nice": 3}}
        assert (await server.ask("POST", "/api/models", admin, json=model))[0] == 201
        for flaw in ({"total": 5}, {"total_seconds": 0}, {"total_seconds": "9"}, [9]):
            assert (await server.ask("PATCH", "/api/models/m", admin, json={"timeouts": flaw}))[0] == 400
        change = {"timeouts": {"total_seconds": 9}, "limits": {"open_files": 64}}
        status, changed = await server.ask("PATCH", "/api/models/m", admin, json=change)
        assert (status, changed["timeouts"]) == (200, timeouts | {"total_seconds": 9.0})
        assert changed["limits"] == {"nice": 3, "open_files": 64, "memory_mb": None}
        change = {"limits": {"nice": None}}
        assert (await server.ask("PATCH", "/api/models/m", admin, json=change))[1]["limits"]["nice"] is None
