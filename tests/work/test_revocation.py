"""Requests that go on for long, and whose caller loses their rights meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.upstream import fake_upstream
from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.errors import JobNotFound, Unauthorized
from signoff.runtime.callers import CallerCache
from signoff.stores.schema import jobs
from signoff.work.admin.people import create_token, create_user, identify
from signoff.work.jobs.query import follow_events, wait_for_end
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, chat, live, until
from support.stores import execute

pytestmark = pytest.mark.anyio

REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")


@asynccontextmanager
async def held_job(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Live, str, str]]:
    """Yield a server, the token of a user, and the id of a held job of that user."""
    async with live(tmp_path, **settings) as server:
        owner = await server.token("user", "owner@example.com")
        _, response = await server.ask("POST", "/enqueue", owner, json=chat("hello"))
        await server.job_when(owner, response["job_id"], lambda job: job["status"] == "human")
        yield server, owner, response["job_id"]


async def take_rights(server: Live, email: str, how: str) -> None:
    """Take the rights of a reviewer away."""
    people = server.services.store.people
    user = await people.user(email)
    assert user is not None
    match how:
        case "role":
            await people.change_user(user.id, role="user")
        case "user":
            await people.change_user(user.id, active=False)
        case _:
            [(token, _)] = await people.tokens("api", user.id)
            await people.revoke_token("api", token.id, None)


@pytest.mark.parametrize("how", ["role", "user", "token"])
async def test_an_open_event_stream_ends_with_the_rights_of_its_caller(how: str, tmp_path: Path) -> None:
    async with held_job(tmp_path) as (server, owner, job_id):
        # given a reviewer with an open stream
        rita = await server.token("reviewer", "rita@example.com")
        headers = {"authorization": f"Bearer {rita}", "accept": "text/event-stream"}
        async with server.http.get(f"{server.url}/api/jobs/{job_id}/events", headers=headers) as response:
            assert response.status == 200
            while b"event: hold" not in await response.content.readline():
                pass
            # when they lose their rights, and another reviewer approves
            await take_rights(server, "rita@example.com", how)
            await decide(server.services, REVIEWER, job_id, VerdictRequest(verdict="approve"))
            rest = await response.content.read()
        # then the stream ends without the events that followed
        assert b"event: decide" not in rest
        assert b"event: approve" not in rest
        # and that of the owner has them
        headers["authorization"] = f"Bearer {owner}"
        async with server.http.get(f"{server.url}/api/jobs/{job_id}/events", headers=headers) as response:
            assert b"event: approve" in await response.content.read()


@pytest.mark.parametrize("how", ["user", "token"])
async def test_an_idle_event_stream_ends_at_its_next_keep_alive(how: str, tmp_path: Path) -> None:
    async with held_job(tmp_path, keep_alive_seconds=0.05) as (server, _, job_id):
        rita = await identify(server.services, await server.token("reviewer", "rita@example.com"))
        pages = follow_events(server.services, rita, job_id, 0)
        assert await anext(pages)

        await take_rights(server, "rita@example.com", how)

        with pytest.raises(Unauthorized):
            async with asyncio.timeout(60):
                async for page in pages:
                    assert page == []


@pytest.mark.parametrize(("how", "error"), [("role", JobNotFound), ("user", Unauthorized), ("token", Unauthorized)])
async def test_a_wait_ends_with_the_rights_of_its_caller(how: str, error: type[Exception], tmp_path: Path) -> None:
    async with held_job(tmp_path, keep_alive_seconds=0.05) as (server, _, job_id):
        rita = await identify(server.services, await server.token("reviewer", "rita@example.com"))
        wait = asyncio.ensure_future(wait_for_end(server.services, rita, job_id, 30))

        await take_rights(server, "rita@example.com", how)

        with pytest.raises(error):
            await wait


async def test_a_wait_returns_the_job_as_the_present_role_may_see_it(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        # given a reviewer who waits for a held job of their own
        rita = await server.token("reviewer", "rita@example.com")
        _, response = await server.ask("POST", "/enqueue", rita, json=chat("hello"))
        await server.job_when(rita, response["job_id"], lambda job: job["status"] == "human")
        caller = await identify(server.services, rita)
        wait = asyncio.ensure_future(wait_for_end(server.services, caller, response["job_id"], 30))
        # when they are a plain user by the time at which another reviewer rejects the answer
        await take_rights(server, "rita@example.com", "role")
        await decide(server.services, REVIEWER, response["job_id"], VerdictRequest(verdict="reject", reason="no"))
        # then they do not get the rejected answer
        job = await wait
        assert (job.status, job.response) == ("fail", None)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_held_call_ends_with_its_token_and_its_job_goes_on(stream: bool, tmp_path: Path) -> None:
    async with live(tmp_path, keep_alive_seconds=0.05) as server:
        await server.model("held", review="always")
        user = await create_user(server.services, "ann@example.com", "user")
        token, other = [await create_token(server.services, user) for _ in range(2)]
        call = asyncio.ensure_future(
            server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "held", stream=stream))
        )

        async def held_id() -> str:
            while True:
                _, page = await server.ask("GET", "/api/jobs?status=human", other)
                if page["data"]:
                    return page["data"][0]["job_id"]

        job_id = await held_id()
        [(first, _), _] = await server.services.store.people.tokens("api", user.id)
        await server.services.store.people.revoke_token("api", first.id, None)

        async with asyncio.timeout(60):
            status, body = await call
        assert status == (200 if stream else 401)
        assert "invalid_api_key" in str(body)
        assert (await server.ask("GET", f"/api/jobs/{job_id}", other))[1]["status"] == "human"


async def test_a_held_stream_reads_no_rights_while_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live(tmp_path, keep_alive_seconds=0.01) as server:
        await server.model("held", review="always")
        headers, reads = {"authorization": f"Bearer {await server.token()}"}, list[int]()
        read = server.services.store.people.user_with_token
        body = chat("hello", "held", stream=True)
        async with server.http.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as response:
            while b"waiting" not in await response.content.readline():
                pass

            async def counted(user_id: int, token_id: int) -> Any:
                reads.append(token_id)
                return await read(user_id, token_id)

            monkeypatch.setattr(server.services.store.people, "user_with_token", counted)
            comments = 0
            while comments < 50:
                comments += b"waiting" in await response.content.readline()
        assert len(reads) < comments / 2  # only those of the check for changes by hand, every few seconds


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["user", "token"])
async def test_a_call_ends_with_the_rights_of_its_caller_before_the_first_byte(
    how: str, stream: bool, tmp_path: Path
) -> None:
    async with live(tmp_path, log_after_seconds=0.05) as server:
        rita, other = await server.token("reviewer", "rita@example.com"), await server.token("admin")
        body = chat("one", "echo/hang", stream=stream)
        call = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", rita, json=body))
        await until(lambda: started_job(server, other))

        await take_rights(server, "rita@example.com", how)

        async with asyncio.timeout(60):
            status, answer = await call
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        job = await until(lambda: ended_job(server, other))
        assert (job["status"], job["error"]["code"]) == ("fail", "cancelled")
        # and the calls of others go on
        assert (await server.ask("POST", "/v1/chat/completions", other, json=chat("hi")))[0] == 200


async def test_a_stream_ends_with_the_rights_of_its_caller_between_two_events(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        rita, other = await server.token("reviewer", "rita@example.com"), await server.token("admin")
        body = chat("one", "echo/tokens=9999,chunk_delay=0.1", stream=True)
        headers = {"authorization": f"Bearer {rita}"}
        async with server.http.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as response:
            assert b"data:" in await response.content.readany()
            await take_rights(server, "rita@example.com", "token")
            async with asyncio.timeout(60):
                rest = await response.content.read()
        assert b"invalid_api_key" in rest
        assert b"[DONE]" not in rest
        job = await until(lambda: ended_job(server, other))
        assert (job["status"], job["error"]["code"]) == ("fail", "cancelled")


async def started_job(server: Live, token: str) -> dict[str, Any] | None:
    """Return the job once it is recorded, which calls of a second are."""
    _, page = await server.ask("GET", "/api/jobs", token)
    return page["data"][0] if page["data"] else None


async def ended_job(server: Live, token: str) -> dict[str, Any] | None:
    """Return the job once it has ended."""
    job = await started_job(server, token)
    return job if job is not None and job["status"] in {"success", "fail"} else None


async def test_callers_without_a_token_have_the_rights_of_the_settings(tmp_path: Path) -> None:
    async with live(tmp_path, anonymous_role="user") as server:
        anonymous = Caller(user_id=0, token_id=0, role="user", email="anonymous")
        assert await CallerCache(server.services.store.people).refresh(anonymous, 0) is anonymous


async def test_a_former_admin_reads_nothing_of_what_their_policies_asked_a_judge(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        # given a policy of an admin whose role became smaller
        await server.model("checked")
        admin = await server.token("admin")
        former = await server.token("admin", "former@example.com")
        policy = {"target": "checked", "judge": "echo", "rules": [{"if": "signals.judge < 2", "then": "hold"}]}
        status, saved = await server.ask("PUT", "/api/policies/judged", former, json=policy)
        assert status == 200, saved
        await take_rights(server, "former@example.com", "role")
        # when somebody's answer is judged, and held
        owner = await server.token("user", "owner@example.com")
        _, job = await server.ask("POST", "/api/jobs", owner, json={"body": chat("amber", "checked")})
        await server.job_when(owner, job["job_id"], lambda job: job["status"] == "human")
        # then the author of the policy owns the call of the judge, which has none of its contents
        _, listed = await server.ask("GET", "/api/jobs", former)
        [call] = listed["data"]
        path = f"/api/jobs/{call['job_id']}"
        assert "amber" not in str([await server.ask("GET", path + more, admin) for more in ("", "/events")])
        status, refused = await server.ask("POST", f"{path}/retry", former)
        assert (status, "is not stored" in refused["detail"]) == (400, True)
        # and reads nothing of one that an earlier version has stored with its contents
        contents = {"body": json.dumps(chat("amber")).encode(), "response": b'"amber"'}
        await execute(server.services.store, sa.update(jobs).where(jobs.c.id == call["job_id"]).values(contents))
        paths = [path, f"{path}/events", f"{path}/deliveries", "/api/jobs"]
        paths += ["/jobs", f"/job?id={call['job_id']}", "/dashboard/jobs", f"/dashboard{path.removeprefix('/api')}"]
        paths += [f"/dashboard/playground?job={call['job_id']}"]
        assert [each for each in paths if "amber" in str(await server.ask("GET", each, former))] == []
        _, results = await server.ask("GET", "/dashboard/jobs?q=amber", former)
        assert call["job_id"] not in results
        # and admins still do
        assert "amber" in str(await server.ask("GET", path, admin))


@pytest.mark.parametrize("how", ["user", "token"])
async def test_a_batch_whose_lines_all_wait_is_cancelled_with_the_rights_of_its_caller(
    how: str, tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        await server.model("checked", review="always")
        admin, owner = await server.token("admin"), await server.token("user", "owner@example.com")
        request = {"custom_id": "a", "params": chat("hello", "checked", max_tokens=9)}
        _, batch = await server.ask("POST", "/v1/messages/batches", owner, json={"requests": [request]})
        await until(lambda: held_line(server, owner))
        await take_rights(server, "owner@example.com", how)

        async def look() -> dict[str, Any] | None:
            _, present = await server.ask("GET", f"/v1/messages/batches/{batch['id']}", admin)
            return present if present["processing_status"] == "ended" else None

        assert (await until(look))["request_counts"]["canceled"] == 1


async def held_line(server: Live, token: str) -> bool | None:
    _, page = await server.ask("GET", "/api/jobs?status=human", token)
    return bool(page["data"]) or None


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/load_lora_adapter"), ("GET", "/v1/vector_stores")])
@pytest.mark.parametrize("page", [False, True])
async def test_a_retry_needs_the_rights_of_a_new_request(method: str, path: str, page: bool, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, log_before_answer=True) as server:
        await server.model("mine", kind="openai", url=fake.at("keep"), default=True)
        # given a request that only an admin may send
        await server.token("admin")
        token = await server.token("admin", "ada@example.com")
        await server.ask(method, path, token, json={"id": "x"})
        [job] = await server.services.store.jobs.list(JobFilter())
        request_count = len(fake.requests)
        assert request_count == 1
        # when the admin is a plain user by the time of the retry
        await take_rights(server, "ada@example.com", "role")
        address = f"/dashboard/jobs/{job.id}/repeat" if page else f"/api/jobs/{job.id}/retry"
        status, _ = await server.ask("POST", address, token, headers={"sec-fetch-site": "same-origin"})
        # then it is refused as a new one is
        assert status == (await server.ask(method, path, token, json={"id": "x"}))[0] == 403
        assert len(fake.requests) == request_count


async def test_a_run_is_not_repeated_once_its_pipeline_is_not_shared(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin, token = await server.token("admin", "ada@example.com"), await server.token()
        prompt = {"name": "asking", "body": "{text}", "model": "echo", "shared": True}
        assert (await server.ask("POST", "/api/prompts", admin, json=prompt))[0] == 201
        pipeline = {"name": "loud", "body": "asking(text)", "shared": True}
        assert (await server.ask("POST", "/api/pipelines", admin, json=pipeline))[0] == 201
        _, run = await server.ask("POST", "/api/jobs", token, json={"target": "loud", "body": {"text": "a"}})
        await server.job_when(token, run["job_id"], lambda job: job["status"] == "success")
        change = {"shared": False}
        assert (await server.ask("PATCH", "/api/pipelines/loud", admin, json=change))[0] == 200
        for action, body in (("retry", {}), ("rerun", {"node": "0"})):
            status, answer = await server.ask("POST", f"/api/jobs/{run['job_id']}/{action}", token, json=body)
            assert (status, answer["code"]) == (404, "model_not_found"), action
            status, answer = await server.ask("POST", f"/api/jobs/{run['job_id']}/{action}", admin, json=body)
            assert status == 202, answer
