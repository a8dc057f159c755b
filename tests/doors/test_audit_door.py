"""Audit log over HTTP: who reads it, and that changes through routes are recorded with their caller and client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from signoff.settings import Settings
from signoff.work.admin.people import create_user, sign_in_link
from support.live_server import Live, live

pytestmark = pytest.mark.anyio

PROMPT = {"name": "greet", "body": "Hello {name}"}
PRICE = {"model": "m", "input": "1", "output": "2", "valid_from": "2026-01-01"}
STREAM = {"name": "s", "url": "amqp://ann:s3cret@127.0.0.1:1/", "requests": "in", "responses": "out"}
MODEL = {"name": "m", "kind": "openai", "url": "https://192.0.2.1/v1", "key": "sk-s3cret"}
# Routes that change the configuration, in this order; each leaves one entry with this action.
CHANGES: list[tuple[str, str, Any, str]] = [
    ("POST", "/api/models", MODEL, "model_created"),
    ("PATCH", "/api/models/m", {"max_waiting": 5}, "model_changed"),
    ("DELETE", "/api/models/m", None, "model_removed"),
    ("POST", "/api/keys", {"name": "k", "key": "sk-s3cret"}, "upstream_key_created"),
    ("DELETE", "/api/keys/{id}", None, "upstream_key_removed"),
    ("POST", "/api/tokens", {"name": "t"}, "token_created"),
    ("DELETE", "/api/tokens/{id}", None, "token_revoked"),
    ("POST", "/api/users", {"email": "new@example.com", "password": "s3cret-word"}, "user_created"),
    ("PATCH", "/api/users/1", {"role": "reviewer"}, "user_changed"),
    ("DELETE", "/api/sessions?user_id=1", None, "sessions_ended"),
    ("PUT", "/api/prices", PRICE, "price_created"),
    ("DELETE", "/api/prices?model=m&valid_from=2026-01-01", None, "price_removed"),
    ("PUT", "/api/limits/all", {"parallel": 5}, "limit_created"),
    ("DELETE", "/api/limits/all", None, "limit_removed"),
    ("POST", "/api/streams", STREAM, "stream_created"),
    ("PATCH", "/api/streams/s", {"max_handlers": 2}, "stream_changed"),
    ("DELETE", "/api/streams/s", None, "stream_removed"),
    ("POST", "/api/prompts", PROMPT, "prompt_created"),
    ("PUT", "/api/prompts/greet", {"body": "Hi"}, "prompt_changed"),
    ("PUT", "/api/prompts/greet/labels/old", {"version": 1}, "prompt_label_changed"),
    ("DELETE", "/api/prompts/greet/labels/old", None, "prompt_label_changed"),
    ("PATCH", "/api/prompts/greet", {"shared": True}, "prompt_sharing_changed"),
    ("DELETE", "/api/prompts/greet", None, "prompt_removed"),
    ("POST", "/api/functions/sync", None, "functions_changed"),
    ("POST", "/post/addmodel?id=a&type=httpmodel&dest=http://192.0.2.1", None, "model_created"),
]


async def history(server: Live, token: str, query: str = "limit=1000") -> list[dict[str, Any]]:
    status, page = await server.ask("GET", f"/api/audit?{query}", token)
    assert status == 200, page
    return page["data"]


async def test_each_route_that_changes_the_configuration_leaves_one_entry_of_its_caller(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await sign_in_link(server.services, await create_user(server.services, "ann@example.com", "user"))
        admin = await server.token("admin")
        for method, path, body, action in CHANGES:
            before = await history(server, admin)
            target = path.replace("{id}", before[0]["subject"].rpartition(":")[2])
            status, response = await server.ask(method, target, admin, json=body)
            assert status < 300, (method, target, response)
            entry, *others = await history(server, admin)
            assert others == before, (method, target, entry)
            assert (entry["action"], entry["actor"], entry["client"]) == (action, "user:admin@example.com", "127.0.0.1")
        assert "s3cret" not in repr(await history(server, admin))


async def test_emptying_the_cache_is_recorded(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        assert (await server.ask("POST", "/api/openai/v1/chat/completions", admin, json=body))[0] == 200
        assert (await server.ask("DELETE", "/api/cache?model=echo", admin))[0] == 200

        [entry] = await history(server, admin, "action=cache_cleared")
        assert entry["actor"] == "user:admin@example.com"
        assert entry["after"] == {"key": None, "user_id": None, "model": "echo", "target": None, "deleted": 1}


async def test_only_an_admin_with_a_token_reads_the_log(tmp_path: Path) -> None:
    async with live(tmp_path, anonymous_role="admin") as server:
        statuses = [(await server.ask("GET", "/api/audit"))[0]]
        for role in ("user", "reviewer", "admin"):
            token = await server.token(role)  # type: ignore[arg-type]
            statuses.append((await server.ask("GET", "/api/audit", token))[0])
        assert statuses == [403, 403, 403, 200]


async def test_pages_go_from_the_newest_entry_to_the_oldest(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        for number in range(3):
            await server.model(f"m{number}")
        everything = await history(server, admin)
        pages, after = list[dict[str, Any]](), ""
        while after is not None:
            _, page = await server.ask("GET", f"/api/audit?limit=2{after and f'&after={after}'}", admin)
            pages, after = pages + page["data"], page["next"]
        assert pages == everything
        at = everything[1]["at"]
        assert everything[1] in await history(server, admin, f"since={at}&actor=system&subject=model:m1")
        assert everything[1] not in await history(server, admin, f"until={at}")
        for query in ("limit=1001", "since=yesterday", "after=0"):
            assert (await server.ask("GET", f"/api/audit?{query}", admin))[0] == 400


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("postgresql://ann:s3cret@h:5432/db", "postgresql://h:5432/db"),
        ("postgresql://h/db?user=ann&password=s3cret", "postgresql://h/db"),
        ("postgresql://h/db?password=s3@cret", "postgresql://…"),
        ("postgresql://ann:s@3cret@h/db", "postgresql://…"),
        ("sqlite:////data/signoff.db", "sqlite:////data/signoff.db"),
    ],
)
def test_the_settings_that_are_recorded_have_no_secrets(tmp_path: Path, url: str, public: str) -> None:
    settings = Settings(data_dir=tmp_path, database_url=url, secret_key="s3cret", webhook_secret="whsec_" + "A" * 32)  # type: ignore[arg-type]
    values = settings.public_values()
    assert values["database_url"] == public
    assert (values["port"], values["webhook_secret"]) == (8000, "**********")
    assert [secret for secret in ("s3cret", "3cret", "AAAA", "ann") if secret in repr(values)] == []
