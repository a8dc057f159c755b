"""A person as a model: the request becomes an item on the desk, and what the reviewer writes is the answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import anthropic
import msgspec
import openai
import pytest

from fakes.http_server import RecordedRequest, Reply, chunked, json_reply, pause
from fakes.upstream import fake_upstream
from signoff.core import sse
from signoff.core.access import Caller
from signoff.core.api_paths import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from signoff.core.ask import Ask
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job
from signoff.core.reviews.policy import JobPolicy
from signoff.core.transitions import replay
from signoff.errors import BadRequest
from signoff.work.reviews.desk import VerdictRequest, decide, undo_verdict
from signoff.work.submit import submit
from support.live_server import Live, chat, client, live, until, words

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
ADMIN = Caller(user_id=98, token_id=98, role="admin", email="ada@example.com")
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Which way?"}]},
    COMPLETIONS: {"prompt": "Which way?"},
    RESPONSES: {"input": "Which way?"},
    MESSAGES: {"messages": [{"role": "user", "content": "Which way?"}], "max_tokens": 9},
}


async def held_job(server: Live) -> Job | None:
    held = await server.services.store.jobs.list(JobFilter(status="human"))
    return held[0] if held else None


async def write(server: Live, answer: Any, job: Job | None = None, *, by: Caller = REVIEWER) -> Job:
    """Approve the item on the desk with this answer, and return the job as it was held."""
    held = job or await until(lambda: held_job(server))
    edit = Edit(response=json.dumps(answer))
    await decide(server.services, by, held.id, VerdictRequest(verdict="approve", edit=edit))
    return held


async def add_person(server: Live, **more: Any) -> None:
    await server.model("lawyer", kind="person", **more)


async def down(_: RecordedRequest) -> Reply:
    """Reply as a server that is out of order."""
    return json_reply({"error": {"message": "Out of order."}}, status=503)


async def test_what_a_person_writes_is_the_answer_in_the_form_of_the_request(tmp_path: Path) -> None:
    async with live(tmp_path, keep_alive_seconds=0.05) as server, client(server, max_retries=0) as ai:
        await add_person(server)
        for path, body in BODIES.items():
            token = await server.token()
            request = asyncio.ensure_future(server.ask("POST", path, token, json=body | {"model": "lawyer"}))
            held = await write(server, "To the left.")
            assert (held.response, held.cost_nanodollars, held.model) == (None, 0, "lawyer")
            status, answer = await request
            assert status == 200
            assert "To the left." in json.dumps(answer)
            sides = ("input", "output") if path in {RESPONSES, MESSAGES} else ("prompt", "completion")
            assert [answer["usage"][f"{side}_tokens"] for side in sides] == [held.prompt_tokens, 3]
            job = await server.services.store.jobs.get(held.id)
            assert job is not None
            assert job.usage is not None
            assert (job.usage.completion_tokens, job.completion_tokens, job.cost_nanodollars) == (3, 3, 0)
            events = await server.services.store.jobs.events(job.id)
            assert replay(events)["completion_tokens"] == 3
        stream = asyncio.ensure_future(_streamed(ai))
        await write(server, "To the right.")
        assert await stream == ("To the right.", "stop", 4)
        async with anthropic.AsyncAnthropic(base_url=server.url, auth_token=await server.token()) as claude:
            message = asyncio.ensure_future(_streamed_message(claude))
            await write(server, "Back.")
            assert await message == ("Back.", "end_turn", 2)


async def _streamed(ai: openai.AsyncOpenAI) -> tuple[str | None, str, int]:
    options: Any = {"include_usage": True}
    async with ai.chat.completions.stream(**chat("Which way?", "lawyer"), stream_options=options) as stream:
        final = await stream.get_final_completion()
    assert final.usage is not None
    return final.choices[0].message.content, final.choices[0].finish_reason, final.usage.completion_tokens


async def _streamed_message(claude: anthropic.AsyncAnthropic) -> tuple[str, str | None, int]:
    async with claude.messages.stream(model="lawyer", **BODIES[MESSAGES]) as stream:
        final: Any = await stream.get_final_message()
    return final.content[0].text, final.stop_reason, final.usage.output_tokens


async def test_a_person_may_call_tools_and_write_a_whole_answer(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        await add_person(server)
        tools: Any = [{"type": "function", "function": {"name": "go", "parameters": {"required": ["to"]}}}]
        request = asyncio.ensure_future(ai.chat.completions.create(**chat("Go.", "lawyer"), tools=tools))
        held = await until(lambda: held_job(server))

        def whole(arguments: str) -> dict[str, Any]:
            call = {"id": "c1", "type": "function", "function": {"name": "go", "arguments": arguments}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            return {"id": "x", "object": "chat.completion", "created": 7, "model": "lawyer"} | {
                "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
            }

        with pytest.raises(BadRequest, match="to"):
            await write(server, whole("{}"), held)
        await write(server, whole('{"to":"Rome"}'), held)
        answer = await request
        assert answer.choices[0].message.tool_calls is not None
        assert answer.choices[0].message.tool_calls[0].id == "c1"
        assert answer.usage is not None


async def test_an_approval_without_an_answer_is_refused(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=60) as server:
        await add_person(server)
        token = await server.token("reviewer")
        _, queued = await server.ask("POST", "/enqueue", token, json={"model": "lawyer", "input": "Which way?"})
        await server.job_when(token, queued["job_id"], lambda job: job["status"] == "human")
        verdict = {"id": queued["job_id"], "status": "success"}
        status, error = await server.ask("POST", "/reviewJob", token, json=verdict)
        assert (status, "no answer yet" in json.dumps(error)) == (400, True)
        # and so after a draft was sent, and the verdict withdrawn
        assert (await server.ask("POST", "/reviewJob", token, json=verdict | {"response": "Left."}))[0] == 200
        await undo_verdict(server.services, ADMIN, queued["job_id"])
        assert (await server.ask("POST", "/reviewJob", token, json=verdict))[0] == 400


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("key", [None, "k1"], ids=["plain", "with a key"])
async def test_a_person_takes_over_when_the_model_is_down(stream: bool, key: str | None, tmp_path: Path) -> None:
    async with fake_upstream(down) as fake, live(tmp_path, now_attempts=1) as server:
        await add_person(server, review_queue="legal")
        await server.model("gpt", kind="openai", url=fake.url, fallbacks=("lawyer",))
        token = await server.token()
        body = chat("Which way?", "gpt", stream=stream)
        headers = {} if key is None else {"idempotency-key": key}
        callers = [
            asyncio.ensure_future(server.ask("POST", CHAT, token, json=body, headers=headers))
            for _ in range(1 if key is None else 3)
        ]
        held = await write(server, "Left.", by=ADMIN)
        assert (held.target, held.model, held.response, held.review_queue) == ("gpt", "lawyer", None, "legal")
        assert held.policy.may_hold
        for status, answer in await asyncio.gather(*callers):
            assert status == 200
            assert (answer.count('"Left."') == 1 and "[DONE]" in answer) if stream else words(answer) == "Left."
        jobs = await server.services.store.jobs.list(JobFilter())
        assert [job.id for job in jobs] == [held.id]
        assert jobs[0].cache == "bypass"
        assert replay(await server.services.store.jobs.events(held.id))["policy"]["review"] == "always"


async def test_nobody_reads_what_waits_for_a_person_in_place_of_a_model(tmp_path: Path) -> None:
    async with fake_upstream(down) as fake, live(tmp_path, now_attempts=1, hold_seconds=0.1) as server:
        await add_person(server)
        await server.model("gpt", kind="openai", url=fake.url, fallbacks=("lawyer",))
        token = await server.token()
        status, error = await server.ask("POST", CHAT, token, json=chat("Which way?", "gpt"))
        assert (status, error["error"]["code"]) == (504, "review_pending")
        held = await until(lambda: held_job(server))
        reviewer = await server.token("reviewer")
        draft = {"id": held.id, "status": "human", "response": "A secret draft."}
        assert (await server.ask("POST", "/reviewJob", reviewer, json=draft))[0] == 200
        for path in (f"/job?id={held.id}", f"/api/jobs/{held.id}", f"/api/jobs/{held.id}/events", "/api/jobs"):
            assert "secret" not in json.dumps(await server.ask("GET", path, token))
        # the caller who comes back gets the job that was left, and no second one
        again = asyncio.ensure_future(
            server.ask("POST", CHAT, token, json=chat("Which way?", "gpt"), headers={"prefer": "wait=60"})
        )
        await write(server, "Left.", held)
        assert words((await again)[1]) == "Left."
        assert len(fake.requests) == 1


async def test_a_stream_that_has_begun_does_not_go_to_a_person(tmp_path: Path) -> None:
    async def cut(_: RecordedRequest) -> Reply:
        piece = sse.event(b'{"choices":[{"index":0,"delta":{"content":"Le"}}]}')
        return chunked(piece, pause(0.05), end="close")

    async with fake_upstream(cut) as fake, live(tmp_path, now_attempts=1) as server:
        await add_person(server)
        await server.model("gpt", kind="openai", url=fake.url, fallbacks=("lawyer",))
        status, answer = await server.ask("POST", CHAT, await server.token(), json=chat("?", "gpt", stream=True))
        assert (status, '"error"' in answer) == (200, True)
        assert await held_job(server) is None


async def test_queued_jobs_wait_without_a_worker_and_go_on_to_another_model(tmp_path: Path) -> None:
    async with live(tmp_path, concurrency=1) as server:
        await add_person(server)
        await server.model("twin")
        token = await server.token("reviewer")
        native = {"target": "lawyer", "path": CHAT, "body": BODIES[CHAT]}
        ids = [(await server.ask("POST", "/api/jobs", token, json=native))[1]["job_id"] for _ in range(3)]
        for job_id in ids:
            job = await server.job_when(token, job_id, lambda job: job["status"] == "human")
            assert (job["response"], job["cost"]) == (None, "0")
        _, other = await server.ask("POST", "/api/jobs", token, json=native | {"target": "twin"})
        await server.job_when(token, other["job_id"], lambda job: job["status"] == "success")
        # one is answered, one is asked of another model, one is cancelled
        body = {"id": ids[0], "status": "success", "response": "Left."}
        assert (await server.ask("POST", "/reviewJob", token, json=body))[0] == 200
        answered = await server.job_when(token, ids[0], lambda job: job["status"] == "success")
        assert words(answered["response"]) == "Left."
        again = {"id": ids[1], "status": "bot", "payload": BODIES[CHAT] | {"model": "twin"}}
        assert (await server.ask("POST", "/reviewJob", token, json=again))[0] == 200
        echoed = await server.job_when(token, ids[1], lambda job: job["status"] == "human")
        assert words(echoed["response"]) == "Which way?"
        assert (await server.ask("DELETE", f"/api/jobs/{ids[2]}", token))[0] in {200, 204}
        assert (await server.ask("GET", f"/job?id={ids[2]}", token))[1]["status"] == "fail"


@pytest.mark.parametrize("on_deadline", ["approve", "reject"])
async def test_a_deadline_does_not_approve_an_answer_that_nobody_wrote(on_deadline: Any, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await add_person(server)
        policy = JobPolicy(deadline_seconds=0.01, on_deadline=on_deadline)
        rules = msgspec.structs.replace(server.services.rules, policy=policy)
        services = msgspec.structs.replace(server.services, rules=rules)
        owner, body = await server.token(), json.dumps(BODIES[CHAT]).encode()
        caller = Caller(user_id=1, token_id=1, role="user", email="user@example.com")
        ask = Ask(door="native", caller=caller, path=CHAT, body=body, target="lawyer", lane="later")
        job = await submit(services, ask)
        ended = await server.job_when(owner, job.id, lambda job: job["status"] in {"fail", "success"})
        assert (ended["status"], ended["error"]["code"]) == ("fail", "expired")


async def test_a_step_on_a_person_parks_the_run(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await add_person(server)
        token = await server.token()
        for path, body in (
            ("/api/prompts", {"name": "consult", "body": "Advise on {topic}", "model": "lawyer"}),
            ("/api/prompts", {"name": "repeat", "body": "Advice: {text}", "model": "echo"}),
            ("/api/pipelines", {"name": "advice", "body": "repeat(consult(topic))"}),
        ):
            assert (await server.ask("POST", path, token, json=body))[0] == 201
        call = asyncio.ensure_future(server.ask("POST", CHAT, token, json=chat('{"topic": "ships"}', "advice")))
        held = await until(lambda: held_job(server))
        assert (held.prompt, held.response) == ("consult", None)
        assert held.parent_id is not None
        run_id = held.parent_id
        run = await until(lambda: parked(server, run_id))
        assert run.lease is None
        await write(server, "buy two", held)
        assert words((await call)[1]) == "Advice: buy two"


async def parked(server: Live, run_id: str) -> Job | None:
    run = await server.services.store.jobs.get(run_id)
    return run if run is not None and run.parked_at is not None else None


async def test_requests_that_nobody_can_answer_in_words_are_refused(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await add_person(server)
        token = await server.token()
        for path, body, message in (
            ("/v1/embeddings", {"input": "x"}, "answers in words"),
            ("/v1/rerank", {"query": "x", "documents": ["y"]}, "answers in words"),
            (RESPONSES, {"input": "x", "background": True}, "`background` is not supported"),
            (RESPONSES, {"input": "x", "conversation": "conv_1"}, ""),
        ):
            status, error = await server.ask("POST", path, token, json=body | {"model": "lawyer"})
            assert (status in {400, 404}, message in json.dumps(error)) == (True, True), (path, error)
        count = {"model": "lawyer", "messages": BODIES[MESSAGES]["messages"]}
        status, answer = await server.ask("POST", "/v1/messages/count_tokens", token, json=count)
        assert (status, answer["input_tokens"] > 0) == (200, True)
        assert await held_job(server) is None


async def test_a_response_of_a_person_cannot_be_continued_as_nobody_has_stored_it(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server, max_retries=0) as ai:
        await add_person(server)
        call = asyncio.ensure_future(ai.responses.create(model="lawyer", input="Which way?"))
        await write(server, "Left.")
        first = await call
        assert first.output_text == "Left."
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            await ai.responses.create(model="lawyer", input="And then?", previous_response_id=first.id)


async def test_a_person_is_registered_as_any_model(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        person = {"name": "expert", "kind": "person", "review_queue": "legal"}
        status, model = await server.ask("POST", "/api/models", admin, json=person)
        assert (status, model["review"], model["review_queue"], model["kind"]) == (201, "always", "legal", "person")
        for faulty, message in (
            ({"review": "never"}, "must not be never"),
            ({"url": "http://127.0.0.1:1"}, "`url` has no effect"),
            ({"fallbacks": ["echo"]}, "`fallbacks` has no effect"),
            ({"replicas": 2}, "for models of the kind subprocess"),
            ({"review_queue": " x"}, "`review_queue` must be"),
        ):
            status, error = await server.ask(
                "POST", "/api/models", admin, json={"name": "x", "kind": "person"} | faulty
            )
            assert (status, message in json.dumps(error)) == (400, True), error
        status, error = await server.ask(
            "POST", "/api/models", admin, json={"name": "x", "kind": "echo", "review_queue": "legal"}
        )
        assert (status, "kind person" in json.dumps(error)) == (400, True)
        assert "expert" in {each["id"] for each in (await server.ask("GET", "/v1/models", admin))[1]["data"]}
        _, health = await server.ask("GET", "/api/models/expert?health=true", admin)
        assert health["health"]["ok"] is True
