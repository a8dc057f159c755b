"""Limits of sign-ins with a password, and their cost for other callers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Literal

import argon2
import pytest
from structlog.testing import capture_logs

from signoff.core import sign_in as core_sign_in
from signoff.core.sign_in import sign_in_limits
from signoff.runtime.passwords import MAX_HASHES
from signoff.work.admin.people import create_user
from support.live_server import Live, live, until
from support.stores import together

pytestmark = pytest.mark.anyio

BURST = sign_in_limits("", "")[0].burst
CLIENT_BURST = sign_in_limits("", "")[1].burst


@pytest.fixture(autouse=True)
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the waits longer than any test, however slow the machine is."""
    monkeypatch.setattr(core_sign_in, "FIRST_WAIT_SECONDS", 600.0)


class VerificationRecorder(argon2.PasswordHasher):
    """Hasher that records the hashes that it verifies passwords with."""

    def __init__(self, parallelism: int) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=parallelism)
        self.verified = list[str]()

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002 -- the library's name
        self.verified.append(str(hash))
        return super().verify(hash, password)


def verify_at_once(server: Live, *, is_right: bool = False) -> None:
    """Replace the hashes by a constant result, which takes no time."""
    server.services.runtime.passwords._verify = lambda *_: is_right  # type: ignore[method-assign]


async def sign_in(server: Live, email: str, password: str, **headers: str) -> tuple[int, str | None, str]:
    """Try to sign in; return the status, the seconds to wait, and the text of the response."""
    body = {"email": email, "password": password}
    async with server.http.post(server.url + "/api/session", json=body, headers=headers) as response:
        return response.status, response.headers.get("retry-after"), await response.text()


@pytest.mark.parametrize("email", ["ann@example.com", "nobody@example.com"])
async def test_wrong_passwords_for_an_address_are_limited_whether_it_exists_or_not(email: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await create_user(server.services, "ann@example.com", "user", "correct horse")

        tries = [await sign_in(server, email, f"wrong {number}") for number in range(BURST + 2)]
        right = await sign_in(server, email.upper(), "correct horse")

        assert [status for status, _, _ in tries] == [401] * BURST + [429] * 2
        assert right[0] == 429
        assert 0 < int(right[1] or 0) <= 600
        assert {text for status, _, text in tries if status == 401} == {tries[0][2]}
        assert "wrong" in tries[0][2]
        assert email not in str(tries)


async def test_concurrent_wrong_passwords_are_limited_as_well(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await create_user(server.services, "ann@example.com", "user", "correct horse")
        verify_at_once(server)

        tries = await together(sign_in(server, "ann@example.com", "wrong") for _ in range(60))

        assert sorted({status for status, _, _ in tries}) == [401, 429]
        assert [status for status, _, _ in tries].count(401) <= BURST
        assert all(seconds for status, seconds, _ in tries if status == 429)


async def test_a_restart_forgets_no_failure(tmp_path: Path) -> None:
    for expected in (401, 429):
        async with live(tmp_path) as server:
            verify_at_once(server)
            assert [(await sign_in(server, "ann@example.com", "wrong"))[0] for _ in range(BURST)] == [expected] * BURST


async def test_a_client_is_limited_over_all_addresses_whatever_it_claims_to_be(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        verify_at_once(server)

        statuses = [
            (await sign_in(server, f"{number}@example.com", "wrong", **{"x-forwarded-for": f"203.0.113.{number}"}))[0]
            for number in range(CLIENT_BURST + 2)
        ]

        assert statuses == [401] * CLIENT_BURST + [429] * 2


async def test_right_passwords_are_not_limited(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await create_user(server.services, "ann@example.com", "user", "correct horse")
        verify_at_once(server, is_right=True)

        assert [(await sign_in(server, "ann@example.com", "correct horse"))[0] for _ in range(30)] == [200] * 30


async def test_each_limited_sign_in_is_logged_without_its_password(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        verify_at_once(server)
        with capture_logs() as events:
            for _ in range(BURST + 2):
                await sign_in(server, "ann@example.com", "a wrong secret")
            for _ in range(BURST + 1):
                await sign_in(server, "a password in the wrong field", "a wrong secret")

    limited = [event for event in events if event["event"] == "sign_in_limited"]
    assert [event["email"] for event in limited] == ["ann@example.com", "ann@example.com", None]
    assert {(event["log_level"], event["client"]) for event in limited} == {("warning", "127.0.0.1")}
    assert "secret" not in str(events)
    assert "wrong field" not in str(events)


async def test_waiting_hashes_delay_no_other_request_and_have_a_bound(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        # given sign-ins whose hash does not end
        token, passwords = await server.token(), server.services.runtime.passwords
        has_begun, may_end = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def wait(*_: object) -> bool:
            loop.call_soon_threadsafe(has_begun.set)
            return may_end.wait(60) and False

        passwords._verify = wait  # type: ignore[method-assign]
        try:
            async with asyncio.TaskGroup() as group:
                waiting = [
                    group.create_task(sign_in(server, f"{number}@example.com", "wrong")) for number in range(MAX_HASHES)
                ]
                await has_begun.wait()
                # when others send requests, and resolve names
                assert (await server.ask("GET", "/api/jobs?limit=1", token))[0] == 200
                assert await loop.getaddrinfo("localhost", 80)
                # then they are answered, and of more sign-ins all but those that have room are refused at once
                waiting += [
                    group.create_task(sign_in(server, f"{number}@example.com", "wrong"))
                    for number in range(MAX_HASHES, 2 * MAX_HASHES)
                ]
                refused = list[tuple[int, str | None, str]]()
                for next_done in asyncio.as_completed(waiting):
                    refused.append(await next_done)
                    if len(refused) == MAX_HASHES:
                        break
                assert {(status, seconds) for status, seconds, _ in refused} == {(429, "2")}
                may_end.set()
        finally:
            may_end.set()
        assert [task.result()[0] for task in waiting].count(401) == MAX_HASHES


async def test_a_hash_with_other_parameters_still_verifies_and_is_replaced(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        people = server.services.store.people
        old_hash = argon2.PasswordHasher(parallelism=4, memory_cost=1024).hash("correct horse")
        await people.put_user("ann@example.com", "user", old_hash)

        assert (await sign_in(server, "ann@example.com", "wrong"))[0] == 401
        assert (await people.user("ann@example.com")).password_hash == old_hash
        assert (await sign_in(server, "ann@example.com", "correct horse"))[0] == 200

        new_hash = (await people.user("ann@example.com")).password_hash
        assert new_hash is not None
        assert argon2.extract_parameters(new_hash).parallelism == 1
        assert not server.services.runtime.passwords.is_outdated(new_hash)
        assert (await sign_in(server, "ann@example.com", "correct horse"))[0] == 200


@pytest.mark.parametrize("state", ["unknown", "without a password", "disabled", "active"])
async def test_each_wrong_sign_in_does_the_work_of_one_verification(state: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        recorder = VerificationRecorder(parallelism=1)
        server.services.runtime.passwords._argon2 = recorder
        if state != "unknown":
            password = None if state == "without a password" else "correct horse"
            user = await create_user(server.services, "ann@example.com", "user", password)
            await server.services.store.people.change_user(user.id, active=state != "disabled")
        password = "wrong" if state == "active" else "no user has this password"
        assert (await sign_in(server, "ann@example.com", password))[0] == 401
        assert len(recorder.verified) == 1
        assert not recorder.check_needs_rehash(recorder.verified[0])


@pytest.mark.parametrize("body", [{"email": "a" * 300, "password": "p"}, {"email": "a@x.org", "password": "p" * 2000}])
async def test_a_sign_in_that_no_user_can_have_is_refused_before_it_is_hashed(
    body: dict[str, str], tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        assert (await server.ask("POST", "/api/session", json=body))[0] == 400


@pytest.mark.parametrize("change", ["password", "disabled"])
async def test_a_sign_in_that_began_before_a_change_of_the_user_gets_no_session(change: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        passwords, people = server.services.runtime.passwords, server.services.store.people
        user = await create_user(server.services, "ann@example.com", "user", "correct horse")
        new_hash, is_blocked, may_go_on = await passwords.hash("another horse"), threading.Event(), threading.Event()
        passwords._thread.submit(lambda: is_blocked.set() or may_go_on.wait())
        await asyncio.to_thread(is_blocked.wait)
        signing_in = asyncio.ensure_future(sign_in(server, "ann@example.com", "correct horse"))

        async def waits() -> bool | None:
            return passwords._thread._work_queue.qsize() > 0 or None

        await until(waits)
        if change == "password":
            await people.put_user("ann@example.com", "user", new_hash)
        else:
            await create_user(server.services, "root@example.com", "admin")
            await people.change_user(user.id, active=False)
        may_go_on.set()
        assert (await signing_in)[0] == 401
        assert await people.tokens("session", user.id) == []
