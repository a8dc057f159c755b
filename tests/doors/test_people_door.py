"""Users, tokens and sessions over HTTP: who sees and ends what, and how soon that takes effect."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from signoff.core.access import Role
from signoff.core.api_tokens import PREFIX
from signoff.errors import BadRequest
from signoff.runtime import invalidation
from signoff.stores.people_schema import tokens, users
from signoff.work.admin.people import create_token, create_user, sign_in_link
from support.live_server import Live, live, until
from support.stores import execute

pytestmark = pytest.mark.anyio


async def session_of(server: Live, email: str, role: Role = "user") -> dict[str, str]:
    """Sign in, and return the headers of the session."""
    link = await sign_in_link(server.services, await create_user(server.services, email, role))
    async with server.http.get(server.url + link, allow_redirects=False) as response:
        cookie = response.headers["set-cookie"]
    server.http.cookie_jar.clear()
    return {"cookie": cookie.split(";")[0]}


async def becomes(server: Live, status: int, token: str | None = None, **more: Any) -> None:
    """Wait until a request has this status."""

    async def has_status() -> bool | None:
        return (await server.ask("GET", "/api/jobs", token, **more))[0] == status or None

    await until(has_status)


async def listed(server: Live, path: str, token: str | None, **more: Any) -> list[dict[str, Any]]:
    """Return all entries of a list, which is read in pages of two."""
    entries, after = list[dict[str, Any]](), 0
    while after is not None:
        status, page = await server.ask("GET", f"{path}?limit=2&after={after}", token, **more)
        assert status == 200
        entries, after = entries + page["data"], page["next"]
    return entries


async def test_a_token_is_created_listed_and_revoked_by_its_owner(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, bob = [await server.token("user", f"{name}@example.com") for name in ("ann", "bob")]

        status, created = await server.ask("POST", "/api/tokens", ann, json={"name": "laptop", "days": 2})
        assert (status, created.keys()) == (201, {"id", "token"})
        entries = await listed(server, "/api/tokens", ann)

        assert [(entry["name"], entry["role"], entry["email"]) for entry in entries] == [
            ("", "user", "ann@example.com"),
            ("laptop", "user", "ann@example.com"),
        ]
        assert [entry["current"] for entry in entries] == [True, False]
        assert entries[0]["expires_at"] is None
        assert entries[1]["expires_at"] > entries[1]["created_at"]
        assert PREFIX not in str(entries)
        assert entries[1]["id"] == created["id"]
        laptop = f"/api/tokens/{created['id']}"
        assert (await server.ask("GET", "/api/jobs", created["token"]))[0] == 200
        assert (await server.ask("DELETE", laptop, bob))[0] == 404
        assert (await server.ask("DELETE", laptop.replace("tokens", "sessions"), ann))[0] == 404
        assert [(await server.ask("DELETE", laptop, ann))[0] for _ in range(2)] == [204, 404]
        await becomes(server, 401, created["token"])
        assert len(await listed(server, "/api/tokens", ann)) == 1


async def test_an_admin_manages_the_tokens_of_all_users(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin, ann = await server.token("admin", "root@example.com"), await server.token("user", "ann@example.com")
        for email in ("ann@example.com", "root@example.com"):
            assert (await server.ask("POST", "/api/tokens", admin, json={"email": email}))[0] == 201

        entries = await listed(server, "/api/tokens", admin)
        [first, _] = [entry for entry in entries if entry["email"] == "ann@example.com"]

        assert len(entries) == 4
        assert (await server.ask("DELETE", f"/api/tokens/{first['id']}", admin))[0] == 204
        await becomes(server, 401, ann)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"email": "root@example.com"}, 403),
        ({"email": "nobody@example.com"}, 403),
        ({"role": "reviewer"}, 403),
        ({"role": "admin"}, 403),
        ({"days": 0}, 400),
        ({"days": -1}, 400),
        ({"days": 1e9}, 400),
        ({"key_id": 5}, 404),
        ({"name": "n" * 300}, 400),
        ({"kind": "session"}, 400),
    ],
)
async def test_nobody_creates_a_token_with_rights_that_they_do_not_have(
    body: dict[str, Any], status: int, tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        await server.token("admin", "root@example.com")
        ann = await server.token("user", "ann@example.com")

        assert (await server.ask("POST", "/api/tokens", ann, json=body))[0] == status
        assert len(await listed(server, "/api/tokens", ann)) == 1


async def test_no_token_has_a_longer_name_or_life_whoever_creates_it(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user = await create_user(server.services, "ann@example.com", "user")
        for more in ({"name": "n" * 201}, {"seconds": 1e15}, {"seconds": float("inf")}, {"seconds": float("nan")}):
            with pytest.raises(BadRequest, match="at most"):
                await create_token(server.services, user, **more)


async def test_a_token_creates_none_with_more_rights_or_a_later_end_than_its_own(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        root = await create_user(server.services, "root@example.com", "admin")
        lesser = await create_token(server.services, root, role="user")
        short = await create_token(server.services, root, seconds=3600)

        assert (await server.ask("POST", "/api/tokens", lesser, json={"role": "admin"}))[0] == 403
        assert (await server.ask("POST", "/api/tokens", lesser, json={"email": "ann@example.com"}))[0] == 403
        assert (await server.ask("POST", "/api/tokens", lesser, json={}))[0] == 201
        assert (await server.ask("POST", "/api/tokens", short, json={}))[0] == 400
        assert (await server.ask("POST", "/api/tokens", short, json={"days": 1}))[0] == 400
        assert (await server.ask("POST", "/api/tokens", short, json={"days": 0.01}))[0] == 201
        session = await session_of(server, "root@example.com", "admin")
        assert (await server.ask("POST", "/api/tokens", headers=session, json={"days": 300}))[0] == 201
        roles = [entry["role"] for entry in await listed(server, "/api/tokens", short)]
        assert roles == ["user", "admin", "user", "admin", "admin"]


async def test_users_are_listed_changed_and_disabled_by_admins(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin, ann = await server.token("admin", "root@example.com"), await server.token("user", "ann@example.com")
        [root_entry, ann_entry] = await listed(server, "/api/users", admin)
        path = f"/api/users/{ann_entry['id']}"

        assert ann_entry == {"id": ann_entry["id"], "email": "ann@example.com", "role": "user", "active": True}
        assert await listed(server, "/api/users", ann) == [ann_entry]
        assert (await server.ask("PATCH", path, ann, json={"role": "admin"}))[0] == 403
        assert await server.ask("PATCH", path, admin, json={"role": "reviewer"}) == (
            200,
            ann_entry | {"role": "reviewer"},
        )
        assert await server.ask("PATCH", path, admin, json={"active": False}) == (
            200,
            ann_entry | {"role": "reviewer", "active": False},
        )
        await becomes(server, 401, ann)
        assert (await server.ask("PATCH", path, admin, json={"active": True}))[0] == 200
        await becomes(server, 200, ann)
        # and the last admin can lock nobody out
        for change in ({"active": False}, {"role": "user"}):
            status, refusal = await server.ask("PATCH", f"/api/users/{root_entry['id']}", admin, json=change)
            assert (status, refusal["code"]) == (409, "conflict")
        assert (await server.ask("PATCH", "/api/users/999", admin, json={"active": False}))[0] == 404
        assert (await server.ask("PATCH", path, admin, json={"password": "x"}))[0] == 400
        assert (await server.ask("PATCH", path, admin, json={"email": "x@example.com"}))[0] == 400


async def test_an_admin_creates_a_user_once_who_signs_in_with_the_password(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin, ann = await server.token("admin", "root@example.com"), await server.token("user", "ann@example.com")
        new = {"email": "New@example.com", "role": "reviewer", "password": "correct horse"}

        assert (await server.ask("POST", "/api/users", ann, json=new))[0] == 403
        status, created = await server.ask("POST", "/api/users", admin, json=new)
        expected = {"id": created["id"], "email": "new@example.com", "role": "reviewer", "active": True}
        assert (status, created) == (201, expected)
        assert created in await listed(server, "/api/users", admin)
        for taken in (new, {"email": "ann@EXAMPLE.com", "role": "admin", "password": "another one"}):
            status, refusal = await server.ask("POST", "/api/users", admin, json=taken)
            assert (status, refusal["code"]) == (409, "conflict")
        assert (await listed(server, "/api/users", ann))[0]["role"] == "user"
        for fault in ({}, {"email": "nobody"}, {"email": "a@example.com", "password": "short"}, new | {"id": 7}):
            assert (await server.ask("POST", "/api/users", admin, json=fault))[0] == 400
        sign_in = {"email": "new@example.com", "password": "correct horse"}
        assert (await server.ask("POST", "/api/session", json=sign_in))[0] == 200
        server.http.cookie_jar.clear()
        status, plain = await server.ask("POST", "/api/users", admin, json={"email": "plain@example.com"})
        assert (status, plain["role"]) == (201, "user")


async def test_one_of_two_admins_creates_a_user(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        bodies = [{"email": "new@example.com", "role": role} for role in ("user", "reviewer", "admin")]
        replies = await asyncio.gather(*(server.ask("POST", "/api/users", admin, json=body) for body in bodies))
        assert sorted(status for status, _ in replies) == [201, 409, 409]
        [user] = [each for each in await listed(server, "/api/users", admin) if each["email"] == "new@example.com"]
        assert [reply for status, reply in replies if status == 201] == [user]


async def test_a_user_is_changed_by_the_email_address_and_a_new_password_ends_the_sessions(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin, session = await server.token("admin"), await session_of(server, "ann@example.com")
        path = "/api/users/ANN%40example.com"

        status, changed = await server.ask("PATCH", path, admin, json={"role": "reviewer"})
        assert (status, changed["email"], changed["role"]) == (200, "ann@example.com", "reviewer")
        assert (await server.ask("GET", "/api/jobs", headers=session))[0] == 200
        for password in ("short", "n" * 1025):
            assert (await server.ask("PATCH", path, admin, json={"password": password}))[0] == 400
        assert (await server.ask("PATCH", path, admin, json={"password": "correct horse"}))[0] == 200
        await becomes(server, 401, headers=session)
        sign_in = {"email": "ann@example.com", "password": "correct horse"}
        assert (await server.ask("POST", "/api/session", json=sign_in))[0] == 200
        server.http.cookie_jar.clear()
        for unknown in ("bob@example.com", "999", "0", "9" * 400, "x"):
            assert (await server.ask("PATCH", f"/api/users/{unknown}", admin, json={"active": True}))[0] == 404
        assert (await server.ask("DELETE", f"{path}?erase=true", admin))[0] == 202


async def test_a_token_is_listed_as_active_until_it_is_over_or_its_owner_is_disabled(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin, ann = await server.token("admin", "root@example.com"), await server.token("user", "ann@example.com")
        await create_token(server.services, await create_user(server.services, "ann@example.com", "user"), seconds=-1)

        assert [token["active"] for token in await listed(server, "/api/tokens", ann)] == [True, False]
        await server.ask("PATCH", "/api/users/ann@example.com", admin, json={"active": False})
        tokens = {token["email"]: token["active"] for token in await listed(server, "/api/tokens", admin)}
        assert tokens == {"root@example.com": True, "ann@example.com": False}


async def test_sessions_are_listed_and_ended(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        one, two = [await session_of(server, "ann@example.com") for _ in range(2)]
        other, admin = await session_of(server, "bob@example.com"), await server.token("admin")

        entries = await listed(server, "/api/sessions", None, headers=one)
        assert [entry["current"] for entry in entries] == [True, False]
        assert all(entry["expires_at"] for entry in entries)
        assert (await server.ask("DELETE", f"/api/sessions/{entries[1]['id']}", headers=other))[0] == 404
        assert (await server.ask("DELETE", f"/api/sessions/{entries[1]['id']}", headers=one))[0] == 204
        await becomes(server, 401, headers=two)
        assert len(await listed(server, "/api/sessions", admin)) == 2
        # and all of a user's sessions at once
        ann_id, bob_id = entries[0]["user_id"], entries[0]["user_id"] + 1
        assert (await server.ask("DELETE", f"/api/sessions?user_id={bob_id}", headers=one))[0] == 404
        assert await server.ask("DELETE", "/api/sessions", headers=one) == (200, {"ended": 1})
        assert await server.ask("DELETE", f"/api/sessions?user_id={ann_id}", admin) == (200, {"ended": 0})
        assert await server.ask("DELETE", f"/api/sessions?user_id={bob_id}", admin) == (200, {"ended": 1})
        for session in (one, other):
            await becomes(server, 401, headers=session)


async def test_an_anonymous_admin_manages_nobody(tmp_path: Path) -> None:
    async with live(tmp_path, anonymous_role="admin") as server:
        token = await server.token("admin")
        for method, path in (
            ("GET", "/api/users"),
            ("GET", "/api/tokens"),
            ("GET", "/api/sessions"),
            ("POST", "/api/tokens"),
            ("PATCH", "/api/users/1"),
            ("DELETE", "/api/tokens/1"),
            ("DELETE", "/api/sessions/1"),
            ("DELETE", "/api/sessions"),
        ):
            body = {"json": {}} if method in {"POST", "PATCH"} else {}
            assert (await server.ask(method, path, **body))[0] == 403
        assert (await server.ask("GET", "/api/jobs", token))[0] == 200


async def test_a_new_password_ends_the_sessions_of_the_user(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        session, token = await session_of(server, "ann@example.com"), await server.token("user", "ann@example.com")
        user = await server.services.store.people.user("ann@example.com")
        assert user is not None
        link = await sign_in_link(server.services, user)

        await create_user(server.services, "ann@example.com", "user", "a new password")

        await becomes(server, 401, headers=session)
        async with server.http.get(server.url + link, allow_redirects=False) as response:
            assert response.status == 401
        assert (await server.ask("GET", "/api/jobs", token))[0] == 200


async def test_only_the_newest_sign_in_link_works(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user = await create_user(server.services, "ann@example.com", "user")
        links = [await sign_in_link(server.services, user) for _ in range(3)]
        statuses = []
        for link in links:
            async with server.http.get(server.url + link, allow_redirects=False) as response:
                statuses.append(response.status)
        assert statuses == [401, 401, 303]


async def test_an_expired_token_is_told_to_its_holder_only(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user = await create_user(server.services, "ann@example.com", "user")
        over = await create_token(server.services, user, seconds=-1)
        unknown = over[:-6] + "000000"

        status, error = await server.ask("GET", "/api/jobs", over)
        assert (status, error["code"]) == (401, "token_expired")
        assert "expired" in error["detail"]
        status, error = await server.ask("GET", "/api/jobs", unknown)
        assert (status, error["code"]) == (401, "unauthorized")
        # and a disabled user learns no more than a stranger
        await server.services.store.people.change_user(user.id, active=False)
        assert (await server.ask("GET", "/api/jobs", over))[1]["code"] == "unauthorized"


async def test_a_token_that_expires_while_it_is_cached_is_refused(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user = await create_user(server.services, "ann@example.com", "user")
        token = await create_token(server.services, user, seconds=3600)
        callers, now = server.services.caches.callers, server.services.clock()

        await callers.identify(token, "api", now)

        with pytest.raises(Exception, match="expired"):
            await callers.identify(token, "api", now + 3601 * 1_000_000)


@pytest.mark.parametrize("table", [tokens, users])
async def test_a_row_that_was_changed_by_hand_takes_effect_within_seconds(
    table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "MAX_AGE_SECONDS", 0.0)
    async with live(tmp_path) as server:
        token = await server.token("user")
        assert (await server.ask("GET", "/api/jobs", token))[0] == 200

        await execute(server.services.store, table.update().values(active=False))  # type: ignore[arg-type]

        await becomes(server, 401, token)


async def test_the_last_use_of_a_token_is_shown(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, callers = await server.token("user"), server.services.caches.callers
        before = await server.services.store.versions()
        [entry] = await listed(server, "/api/tokens", token)
        assert entry["last_used_at"] is None

        await callers.record_uses()

        [entry] = await listed(server, "/api/tokens", token)
        assert entry["last_used_at"] >= entry["created_at"]
        assert await server.services.store.versions() == before


async def test_a_server_that_stops_records_the_last_uses(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("user")
        assert (await server.ask("GET", "/api/jobs", token))[0] == 200
    async with live(tmp_path) as server:
        [(stored, _)] = await server.services.store.people.tokens("api", None)
        assert stored.last_used_at is not None
