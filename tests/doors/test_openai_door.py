"""The OpenAI door, driven by the official client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from fakes.upstream import fake_upstream
from signoff.core.access import Caller
from signoff.core.dialects.answer import with_text
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, chat, client, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")


async def test_the_official_client_gets_a_plain_answer(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        answer = await ai.chat.completions.create(**chat("hello there"))
        assert answer.choices[0].message.content == "hello there"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 4


async def test_the_official_client_reads_a_stream(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        pieces = [piece async for piece in await ai.chat.completions.create(**chat("one two three", stream=True))]
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "one two three"
        assert pieces[-1].choices[0].finish_reason == "stop"


async def test_the_official_sync_client_works(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()

        def ask() -> str | None:
            with openai.OpenAI(base_url=server.url + "/v1", api_key=token) as ai:
                return ai.chat.completions.create(**chat("hello")).choices[0].message.content

        assert await asyncio.to_thread(ask) == "hello"


async def test_models_are_listed_and_found(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        await server.model("mine")
        await server.model("gpt-*")
        listed = {model.id async for model in ai.models.list()}
        assert {"mine", "echo"} <= listed
        assert not any("*" in name for name in listed)
        for name in ("mine", "gpt-5"):
            assert (await ai.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError):
            await ai.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_a_models_own_error_has_the_right_class(
    status: int, expected: type[openai.APIStatusError], tmp_path: Path
) -> None:
    async with live(tmp_path) as server, client(server, max_retries=0) as ai:
        for stream in (False, True):
            with pytest.raises(expected) as caught:
                await ai.chat.completions.create(**chat("hello", f"echo/status={status}", stream=stream))
            assert caught.value.status_code == status


async def test_an_invalid_token_has_the_right_class(tmp_path: Path) -> None:
    async with live(tmp_path) as server, openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="wrong") as ai:
        with pytest.raises(openai.AuthenticationError):
            await ai.chat.completions.create(**chat("hello"))


async def test_a_cut_stream_ends_in_an_error_and_never_in_done(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server, max_retries=0) as ai:
        pieces = list[str]()
        with pytest.raises(openai.APIError, match="middle"):
            async for piece in await ai.chat.completions.create(**chat("one two three four", "echo/cut", stream=True)):
                pieces.append(piece.choices[0].delta.content or "")
        assert "".join(pieces).startswith("one")
        job = await only_job(server)
        assert job.status == "fail"
        assert job.error is not None
        assert job.error.code == "model_cut"


async def test_a_plain_call_is_logged_with_its_answer_and_tokens(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        raw = await ai.chat.completions.with_raw_response.create(**chat("hello"))
        job = await only_job(server)
        assert raw.headers["x-signoff-job"] == job.id
        assert job.response == raw.content
        assert job.usage is not None
        assert (job.status, job.attempt, job.usage.total_tokens) == ("success", 1, 2)


async def test_an_answer_waits_for_its_row_if_so_configured(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server, client(server) as ai:
        await ai.chat.completions.create(**chat("hello"))
        assert len(await server.services.store.jobs.list(JobFilter())) == 1


async def test_a_slow_call_has_its_row_while_it_runs(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, log_after_seconds=0.05) as server, client(server) as ai:
        await server.model("slow", kind="openai", url=fake.at("answer-when-woken"))
        call = asyncio.ensure_future(ai.chat.completions.create(**chat("hello", "slow")))
        job = await only_job(server)
        assert (job.status, job.lease is not None) == ("bot", True)
        fake.wake.set()
        await call
        done = await until(lambda: job_when_ended(server, job.id))
        assert [event.verb for event in await server.services.store.jobs.events(job.id)] == ["submit", "succeed"]
        assert done.status == "success"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("filed", [False, True])
async def test_a_client_that_disconnects_cancels_its_job(stream: bool, filed: bool, tmp_path: Path) -> None:
    async with live(tmp_path, log_after_seconds=0.05 if filed else 60) as server, client(server) as ai:
        call = asyncio.ensure_future(ai.chat.completions.create(**chat("hello", "echo/hang", stream=stream)))
        if filed:
            await only_job(server)
        else:
            await until(lambda: in_flight(server))
        call.cancel()
        job = await until(lambda: ended_job(server))
        assert job.error is not None
        assert (job.status, job.error.code) == ("fail", "cancelled")


async def test_a_disconnect_while_the_row_is_written_leaves_one_row(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server, client(server, max_retries=0) as ai:
        # given a store that takes long to commit
        log_call = server.services.store.jobs.log_call
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(*args: Any, **more: Any) -> Any:
            result = await log_call(*args, **more)
            begun.set()
            await go_on.wait()
            return result

        server.services.store.jobs.log_call = slowly  # type: ignore[method-assign]
        # when the client disconnects before the commit returns
        call = asyncio.ensure_future(ai.chat.completions.create(**chat("hello")))
        await begun.wait()
        call.cancel()
        # then there is one row, with either of the two outcomes
        await until(lambda: ended_job(server))
        go_on.set()
        await only_job(server)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_held_call_gets_the_edited_answer_on_the_same_connection(stream: bool, tmp_path: Path) -> None:
    async with live(tmp_path, keep_alive_seconds=0.05) as server, client(server) as ai:
        await server.model("careful", review="always")
        call = asyncio.ensure_future(answer_text(ai, chat("secret", "careful", stream=stream)))
        job = await until(lambda: held_job(server))
        edit = Edit(response=_edited(job, "signed off"))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve", edit=edit))
        assert await call == "signed off"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_rejected_call_gets_the_reason(stream: bool, tmp_path: Path) -> None:
    async with live(tmp_path, keep_alive_seconds=60) as server, client(server, max_retries=0) as ai:
        await server.model("careful", review="always")
        call = asyncio.ensure_future(answer_text(ai, chat("secret", "careful", stream=stream)))
        job = await until(lambda: held_job(server))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="reject", reason="not like this"))
        # the head of a stream is sent when the answer is held
        expected = openai.APIError if stream else openai.PermissionDeniedError
        with pytest.raises(expected, match="not like this") as caught:
            await call
        assert caught.value.code == "rejected"


async def test_a_held_call_without_a_review_in_time_is_pending_and_goes_on(tmp_path: Path) -> None:
    async with live(tmp_path, hold_seconds=0.1) as server, client(server, max_retries=0) as ai:
        await server.model("careful", review="always")
        with pytest.raises(openai.APIStatusError) as caught:
            await ai.chat.completions.create(**chat("secret", "careful"))
        response = caught.value.response
        job = await only_job(server)
        assert (caught.value.status_code, caught.value.code) == (504, "review_pending")
        assert response.headers["location"] == f"/api/jobs/{job.id}"
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["retry-after"] == "10"
        assert job.status == "human"


async def test_a_held_stream_waits_longer_than_a_whole_call_but_not_for_ever(tmp_path: Path) -> None:
    async with live(tmp_path, hold_seconds=0, stream_hold_seconds=30) as server, client(server) as ai:
        await server.model("careful", review="always")
        waiting = asyncio.ensure_future(answer_text(ai, chat("secret", "careful", stream=True)))
        job = await until(lambda: held_job(server))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        assert await waiting == "secret"
    async with live(tmp_path, hold_seconds=30, stream_hold_seconds=0.1) as server, client(server) as ai:
        with pytest.raises(openai.APIError) as caught:
            await answer_text(ai, chat("again", "careful", stream=True))
        assert caught.value.code == "review_pending"


async def test_a_call_that_is_sent_back_is_performed_again_and_held_again(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        await server.model("careful", review="always")
        call = asyncio.ensure_future(answer_text(ai, chat("first", "careful")))
        job = await until(lambda: held_job(server))
        edit = Edit(payload=_raw(chat("second", "careful")))
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="redo", edit=edit))
        again = await until(lambda: held_job(server, round=2))
        await decide(server.services, REVIEWER, again.id, VerdictRequest(verdict="approve"))
        assert await call == "second"


async def test_the_same_key_joins_the_same_job(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server, max_retries=0) as ai:
        headers = {"Idempotency-Key": "one"}
        request = chat("hello", "echo/delay=0.1")
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(ai.chat.completions.create(**request, extra_headers=headers)) for _ in range(5)]
        assert {call.result().id for call in calls} == {calls[0].result().id}
        await only_job(server)
        with pytest.raises(openai.UnprocessableEntityError):
            await ai.chat.completions.create(**chat("other", "echo"), extra_headers=headers)


async def answer_text(ai: Any, request: dict[str, Any]) -> str:
    answer = await ai.chat.completions.create(**request)
    if not request.get("stream"):
        return answer.choices[0].message.content
    return "".join([piece.choices[0].delta.content or "" async for piece in answer])


async def only_job(server: Live) -> Job:
    """Wait until a job is stored, and return it; fail if there is more than one."""

    async def stored_job() -> Job | None:
        jobs = await server.services.store.jobs.list(JobFilter())
        assert len(jobs) <= 1
        return jobs[0] if jobs else None

    return await until(stored_job)


async def held_job(server: Live, round: int = 1) -> Job | None:  # noqa: A002
    jobs = await server.services.store.jobs.list(JobFilter(status="human"))
    return jobs[0] if jobs and jobs[0].round == round else None


async def job_when_ended(server: Live, job_id: str) -> Job | None:
    job = await server.services.store.jobs.get(job_id)
    return job if job and job.is_terminal else None


async def ended_job(server: Live) -> Job | None:
    jobs = await server.services.store.jobs.list(JobFilter())
    return jobs[0] if jobs and jobs[0].is_terminal else None


async def in_flight(server: Live) -> bool | None:
    return bool(server.services.runtime.inflight_calls._calls) or None


def _edited(job: Job, text: str) -> str:
    return with_text(job.response or b"", text).decode()


def _raw(value: Any) -> str:
    return msgspec.json.encode(value).decode()
