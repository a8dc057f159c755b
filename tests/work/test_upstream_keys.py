"""Upstream keys: a caller's own key is sent with their requests only, and no key is ever shown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fakes.upstream import FakeUpstream, fake_upstream
from signoff.core.access import Role
from signoff.core.ask import Ask
from signoff.errors import NotFound, SignoffError
from signoff.work.admin.people import create_token, create_user, identify
from signoff.work.call import begin_call, whole_answer
from signoff.work.jobs.retry import retry_job
from signoff.work.submit import submit
from support.live_server import Live, chat, live

pytestmark = pytest.mark.anyio


async def store_key(server: Live, token: str, secret: str, **more: Any) -> int:
    """Store an upstream key, assert that the response does not contain it, and return its id."""
    status, payload = await server.ask("POST", "/api/keys", token, json={"name": "mine", "key": secret} | more)
    assert status == 201
    assert secret not in str(payload)
    return payload["id"]


async def list_key_ids(server: Live, token: str) -> list[int]:
    """Return the ids of the upstream keys that the caller sees."""
    status, payload = await server.ask("GET", "/api/keys", token)
    assert status == 200
    return [key["id"] for key in payload["data"]]


async def token_with_key(server: Live, email: str, key_id: int, role: Role = "user") -> str:
    """Return a new token that is bound to the upstream key."""
    return await create_token(server.services, await create_user(server.services, email, role), key_id=key_id)


def sent_key(fake: FakeUpstream) -> str | None:
    """Return the `Authorization` header of the last request at the upstream."""
    return fake.requests[-1].headers.get("authorization")


async def call_model(server: Live, token: str, **more: Any) -> None:
    """Call the model `up` through the core, as a door of the caller does."""
    caller = await identify(server.services, token)
    ask = Ask(door="test", caller=caller, body=b'{"any": 1}', target="up", lane="now", **more)
    assert await whole_answer(server.services, await begin_call(server.services, ask))


# Owners


async def test_a_key_belongs_to_its_owner_and_a_shared_key_is_usable_by_all(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, bob, admin = [
            await server.token(role, f"{role}{number}@x.y") for number, role in enumerate(("user", "user", "admin"))
        ]
        mine, theirs = await store_key(server, ann, "sk-ann"), await store_key(server, bob, "sk-bob")
        common = await store_key(server, admin, "sk-all", shared=True)
        secret = await store_key(server, admin, "sk-admin")
        # users see their own keys and the shared one; an admin sees all keys
        assert await list_key_ids(server, ann) == [mine, common]
        assert await list_key_ids(server, bob) == [theirs, common]
        assert await list_key_ids(server, admin) == [mine, theirs, common, secret]
        assert "sk-" not in str(await server.ask("GET", "/api/keys", admin))
        # a user cannot delete the key of another
        assert (await server.ask("DELETE", f"/api/keys/{theirs}", ann))[0] == 404
        assert (await server.ask("DELETE", f"/api/keys/{secret}", ann))[0] == 404
        assert (await server.ask("DELETE", f"/api/keys/{common}", ann))[0] == 403
        assert await list_key_ids(server, bob) == [theirs, common]
        # users can delete their own keys, and an admin any key
        assert [(await server.ask("DELETE", f"/api/keys/{mine}", ann))[0] for _ in range(2)] == [204, 404]
        assert (await server.ask("DELETE", f"/api/keys/{theirs}", admin))[0] == 204
        assert await list_key_ids(server, admin) == [common, secret]
        # the list is paginated
        _, page = await server.ask("GET", "/api/keys?limit=1", admin)
        assert ([key["id"] for key in page["data"]], page["next"]) == ([common], common)
        _, page = await server.ask("GET", f"/api/keys?limit=1&after={common}", admin)
        assert [key["id"] for key in page["data"]] == [secret]


async def test_only_admins_share_keys_and_anonymous_callers_have_none(tmp_path: Path) -> None:
    new = {"name": "n", "key": "sk-x"}
    async with live(tmp_path, anonymous_role="admin") as server:
        for role in ("user", "reviewer"):
            token = await server.token(role)  # type: ignore[arg-type]
            assert (await server.ask("POST", "/api/keys", token, json=new | {"shared": True}))[0] == 403
        assert (await server.ask("POST", "/api/keys", None, json=new))[0] == 401
        token = await server.token()
        for wrong in ({}, new | {"key": ""}, new | {"key": " k"}, new | {"key": "k\r\nx: y"}, new | {"key": "ü"}):
            assert (await server.ask("POST", "/api/keys", token, json=wrong))[0] == 400
        for wrong in (new | {"name": ""}, new | {"name": "a\nb"}, new | {"more": 1}, [], new | {"key": "k" * 20_000}):
            assert (await server.ask("POST", "/api/keys", token, json=wrong))[0] == 400
        assert await list_key_ids(server, token) == []
    async with live(tmp_path / "closed") as server:
        assert (await server.ask("GET", "/api/keys", None))[0] == 401


# Use


async def test_a_chosen_key_precedes_a_bound_one_and_that_the_key_of_the_model(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        admin, ann = await server.token("admin"), await server.token("user", "ann@x.y")
        new = {"name": "up", "kind": "http", "url": fake.at("mirror"), "key": "sk-model"}
        assert (await server.ask("POST", "/api/models", admin, json=new))[0] == 201
        mine, second = await store_key(server, ann, "sk-ann"), await store_key(server, ann, "sk-ann-2")
        token = await token_with_key(server, "ann@x.y", mine)
        await call_model(server, ann)
        assert sent_key(fake) == "Bearer sk-model"
        await call_model(server, token)
        assert sent_key(fake) == "Bearer sk-ann"
        await call_model(server, token, key_id=second)
        assert sent_key(fake) == "Bearer sk-ann-2"
        await call_model(server, ann, key_id=second)
        assert sent_key(fake) == "Bearer sk-ann-2"


async def test_a_user_cannot_use_another_users_key_unless_it_is_shared(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        await server.model("up", kind="http", url=fake.at("mirror"))
        bob, admin = await server.token("user", "bob@x.y"), await server.token("admin")
        private = await store_key(server, admin, "sk-private")
        common = await store_key(server, admin, "sk-all", shared=True)
        ann = await server.token("user", "ann@x.y")
        anns_key = await store_key(server, ann, "sk-ann")
        for token, key_id in ((bob, private), (bob, anns_key), (admin, anns_key), (bob, 0), (bob, 10**12)):
            with pytest.raises(NotFound):
                await call_model(server, token, key_id=key_id)
        for email, key_id in (("bob@x.y", private), ("bob@x.y", anns_key)):
            with pytest.raises(NotFound):
                await token_with_key(server, email, key_id)
        assert fake.requests == []
        await call_model(server, bob, key_id=common)
        assert sent_key(fake) == "Bearer sk-all"


async def test_a_callers_key_is_sent_to_upstreams_only(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        ann = await server.token("user", "ann@x.y")
        token = await token_with_key(server, "ann@x.y", await store_key(server, ann, "sk-ann"))
        await server.model("gpt", kind="openai", url=fake.at("mirror"))
        await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "gpt"))
        assert sent_key(fake) == "Bearer sk-ann"
        assert (await server.ask("POST", "/v1/chat/completions", token, json=chat("hi")))[0] == 200


async def test_a_queued_job_uses_its_key_at_every_attempt(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        ann = await server.token("user", "ann@x.y")
        key_id = await store_key(server, ann, "sk-ann")
        await server.model("up", kind="http", url=fake.at("broken"), attempts=3)
        caller = await identify(server.services, ann)
        job = await submit(server.services, Ask(door="test", caller=caller, body=b"1", target="up", key_id=key_id))
        await server.job_when(ann, job.id, lambda job: job["status"] == "fail")
        assert [request.headers.get("authorization") for request in fake.requests] == ["Bearer sk-ann"] * 3
        again = await retry_job(server.services, caller, job.id)
        assert again.key_id == key_id


async def test_a_request_with_a_deleted_key_fails_and_is_not_sent_without_a_key(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        ann = await server.token("user", "ann@x.y")
        key_id = await store_key(server, ann, "sk-ann")
        token = await token_with_key(server, "ann@x.y", key_id)
        await server.model("up", kind="http", url=fake.at("mirror"))
        await call_model(server, token)
        await server.ask("DELETE", f"/api/keys/{key_id}", ann)
        with pytest.raises(SignoffError, match="was removed"):
            await call_model(server, token)
        assert len(fake.requests) == 1


# Keys of models


async def test_a_replaced_key_is_used_at_once_and_the_old_one_is_gone(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        admin = await server.token("admin")
        new = {"name": "up", "kind": "http", "url": fake.at("mirror"), "key": "sk-1"}
        await server.ask("POST", "/api/models", admin, json=new)
        for number in range(2, 6):
            await server.ask("PATCH", "/api/models/up", admin, json={"key": f"sk-{number}"})
            await call_model(server, admin)
            assert sent_key(fake) == f"Bearer sk-{number}"
        assert len(await server.services.store.secrets.page("key", None, 10)) == 1


async def test_only_one_of_several_concurrent_registrations_of_a_name_succeeds(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")

        async def register(number: int) -> int:
            new = {"name": "one", "kind": "http", "url": f"http://127.0.0.1:{9000 + number}", "key": f"sk-{number}"}
            return (await server.ask("POST", "/api/models", admin, json=new))[0]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(register(number)) for number in range(10)]
        assert sorted(task.result() for task in tasks) == [201, *[409] * 9]
        assert len(await server.services.store.secrets.page("key", None, 10)) == 1
