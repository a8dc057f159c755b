"""Pipeline calls: the cases of the users, values with special characters, and permissions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from fakes.echoing import REPLY, EchoingModel
from signoff.core.job import Job
from signoff.work.admin.people import create_token, create_user
from signoff.work.perform import perform
from signoff.work.pipelines import step
from signoff.work.services import Services
from support.live_server import Live, chat, live, words
from support.pipeline_cases import PIPELINES
from support.pipelines import call, composing, save, save_prompts, submit
from support.stores import a_job

pytestmark = pytest.mark.anyio


@pytest.fixture
async def upstream() -> AsyncIterator[EchoingModel]:
    """Yield a model server."""
    async with EchoingModel() as upstream:
        yield upstream


@pytest.fixture
async def server(tmp_path: Path, upstream: EchoingModel) -> AsyncIterator[Live]:
    """Yield a server with the functions of the cases and a model."""
    async with composing(tmp_path, upstream) as server:
        yield server


CASES = [*PIPELINES["runs"], *PIPELINES["builtins"]]


@pytest.mark.parametrize("by", ["token", "session"])
async def test_every_case_of_the_users_has_its_expected_result(server: Live, by: str) -> None:
    token = await server.token()
    headers = {} if by == "token" else await sign_in(server)
    await save_prompts(server, token)
    for number, case in enumerate(CASES):
        name = f"case{number}"
        await save(server, token, "pipeline", name, case["pipeline"])

        status, payload = await call(server, token if by == "token" else None, name, case["args"], headers=headers)

        if "error" in case:
            assert (status, payload["code"]) == (422, "function_failed")
            assert "`divide`" in payload["detail"]
            assert "division by zero" in payload["detail"]
        else:
            assert (status, payload) == (200, {"success": True, "response": case["response"]}), case


async def sign_in(server: Live) -> dict[str, str]:
    """Sign a user in; return the headers that a browser sends then."""
    credentials = {"email": "user@example.com", "password": "some secret words"}
    await create_user(server.services, credentials["email"], "user", credentials["password"])
    async with server.http.post(server.url + "/api/session", json=credentials) as response:
        assert response.status == 200
        return {"cookie": response.headers["set-cookie"].partition(";")[0]}


# Values


TEXTS = [
    "{b_arg}",
    "{{a_arg}} {} { } {0} %s ${x} {a_arg!r}",
    '"quotes" \\" and \\ and \n lines\r\n',
    '{"a_arg": ["JSON", {"b": null}]}',
    "caf\u00e9 \u2028 \U0001f600 \u05e9\u05dc\u05d5\u05dd \x00 \x1f \ufeff",
    "__import__('os').system('true')",
    "prompt_b(b_arg)",
    "",
    "x" * 1_000_000,
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:20]))
async def test_a_value_is_inserted_unchanged_whatever_it_contains(
    server: Live, upstream: EchoingModel, text: str
) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "p", "prompt_b(b_arg=builtin_identity(s=prompt_a(a_arg)))")

    status, payload = await call(server, token, "p", {"a_arg": text})

    first = f"{REPLY}this is {text}"
    assert (status, payload) == (200, {"success": True, "response": f"{REPLY}this is {first}"})
    assert upstream.prompts == [f"this is {text}", f"this is {first}"]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({}, "The arguments lack a_arg and b_arg; add a value for each."),
        ({"a_arg": "x", "b_arg": "y", "z": "y"}, "There is no argument z; there are: a_arg and b_arg."),
        ([], "Expected `object`"),
        ("x", "Expected `object`"),
    ],
)
async def test_invalid_arguments_are_refused_before_any_model_is_called(
    server: Live, upstream: EchoingModel, args: Any, why: str
) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "p", "builtin_concat(prompt_a(a_arg), b_arg)")

    status, payload = await call(server, token, "p", args)

    assert (status, why in payload["detail"]) == (400, True)
    assert upstream.prompts == []


# Calls as a model


async def test_a_pipeline_is_called_as_a_model_with_an_object_or_its_only_argument(server: Live) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "one", "prompt_a(a_arg)")
    await save(server, token, "pipeline", "two", "builtin_concat(prompt_a(x), prompt_b(b_arg=y))")
    expected = f"{REPLY}this is 1 {REPLY}this is [2, 3]"

    async def answer_to(text: str, model: str) -> str:
        status, payload = await server.ask("POST", "/v1/chat/completions", token, json=chat(text, model))
        assert status == 200, payload
        return words(payload)

    assert await answer_to("hello", "one") == f"{REPLY}this is hello"
    assert await answer_to(json.dumps({"a_arg": "hello"}), "one") == f"{REPLY}this is hello"
    assert await answer_to('{"other": 1}', "one") == REPLY + 'this is {"other": 1}'
    assert await answer_to(json.dumps({"x": 1, "y": [2, 3]}), "two") == expected
    status, payload = await server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "two"))
    assert (status, payload["error"]["code"]) == (400, "bad_request")


async def test_the_official_client_streams_a_pipeline(server: Live) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "one", "prompt_a(a_arg)", shared=False)
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=token) as official:
        stream = await official.chat.completions.create(**chat("hello", "one"), stream=True)
        chunks = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(chunks) == f"{REPLY}this is hello"


async def test_a_run_with_an_idempotency_key_runs_once(server: Live, upstream: EchoingModel) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "one", "prompt_a(a_arg)")
    key = {"headers": {"idempotency-key": "k"}}

    for _ in range(2):
        assert (await call(server, token, "one", {"a_arg": "x"}, **key))[0] == 200
        status, payload = await server.ask(
            "POST", "/v1/chat/completions", token, json=chat("y", "one"), headers={"idempotency-key": "l"}
        )
        assert (status, words(payload)) == (200, f"{REPLY}this is y")

    assert upstream.prompts == ["this is x", "this is y"]


async def test_a_repeatable_call_of_a_pipeline_succeeds(server: Live) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "one", "prompt_a(a_arg)")

    status, payload = await server.ask("POST", "/v1/chat/completions", token, json=chat("y", "one", temperature=0))

    assert (status, words(payload)) == (200, f"{REPLY}this is y")


# Permissions


async def test_the_pipeline_door_runs_the_pipeline_although_a_model_has_its_name(server: Live) -> None:
    token = await server.token()
    number = await save(server, token, "pipeline", "p", "builtin_identity(x)")
    await server.model("p")
    for name_or_id in ("p", number):
        assert await call(server, token, name_or_id, {"x": "1"}) == (200, {"success": True, "response": "1"})


async def test_a_user_cannot_run_another_users_pipeline_unless_it_is_shared(
    server: Live, upstream: EchoingModel
) -> None:
    ann, bob, admin = (
        await server.token(email="ann@x.org"),
        await server.token(email="bob@x.org"),
        await server.token("admin", email="root@x.org"),
    )
    await save(server, ann, "prompt", "hers", "for {x}", shared=True)
    number = await save(server, ann, "pipeline", "p", "hers(x)")
    await save(server, ann, "pipeline", "common", "hers(x)", shared=True)
    for name_or_id in ("p", number):
        status, payload = await call(server, bob, name_or_id, {"x": "1"})
        assert (status, payload["code"]) == (404, "composed_not_found")
    for path, body in (
        ("/v1/chat/completions", chat("1", "p")),
        ("/api/jobs", {"target": "p", "body": chat("1", "p")}),
    ):
        assert (await server.ask("POST", path, bob, json=body))[0] == 404
    assert upstream.prompts == []

    assert (await call(server, None, "common", {"x": "1"}))[0] == 401
    for token in (bob, admin):
        assert (await call(server, token, "common", {"x": "1"}))[1]["response"] == f"{REPLY}for 1"
    assert (await call(server, admin, "p", {"x": "1"}))[0] == 200


async def test_a_run_has_only_the_rights_of_its_token(server: Live) -> None:
    ann = await server.token(email="ann@x.org")
    root = await create_user(server.services, "root@x.org", "admin")
    lesser, full = [await create_token(server.services, root, role=role) for role in ("user", "admin")]
    await save(server, ann, "prompt", "hers", "for {x}")
    await save(server, full, "pipeline", "listed", "get_prompts()")

    assert (await call(server, lesser, "listed", {}))[1]["response"] == "[]"
    assert (await call(server, full, "listed", {}))[1]["response"] == '["hers"]'


async def test_every_step_of_a_run_uses_the_upstream_key_that_its_caller_chose(
    server: Live, upstream: EchoingModel
) -> None:
    ann, bob = await server.token(email="ann@x.org"), await server.token(email="bob@x.org")
    _, key = await server.ask("POST", "/api/keys", ann, json={"name": "mine", "key": "sk-ann"})
    await save(server, ann, "prompt", "say", "say {x}", shared=True)
    await save(server, ann, "pipeline", "inner", "say(x)", shared=True)
    await save(server, ann, "pipeline", "outer", "concat(say(x), inner(x))", shared=True)
    body = {"pipeline_name": "outer", "args": {"x": "1"}, "openaikey_id": key["id"]}

    status, payload = await server.ask("POST", "/api/pipeline/call", ann, json=body)

    assert status == 200, payload
    assert upstream.keys == ["Bearer sk-ann"] * 2
    assert (await server.ask("POST", "/api/pipeline/call", bob, json=body))[0] == 404
    assert len(upstream.prompts) == 2
    assert (await call(server, bob, "outer", {"x": "1"}))[0] == 200
    assert upstream.keys[2:] == [None, None]


async def test_the_list_of_models_has_the_prompts_and_pipelines_that_the_caller_may_use(server: Live) -> None:
    ann, bob = await server.token(email="ann@x.org"), await server.token(email="bob@x.org")
    await save(server, ann, "prompt", "hers", "for {x}")
    await save(server, ann, "prompt", "ours", "for {x}", shared=True)
    await save(server, ann, "pipeline", "common", "ours(x)", shared=True)
    await save(server, ann, "pipeline", "own", "ours(x)")

    async def listed(token: str) -> set[str]:
        return {model["id"] for model in (await server.ask("GET", "/v1/models", token))[1]["data"]}

    assert await listed(ann) >= {"hers", "ours", "common", "own", "m"}
    assert await listed(bob) & {"hers", "ours", "common", "own"} == {"ours", "common"}


async def test_only_its_owner_has_access_to_a_run_and_its_log(server: Live) -> None:
    ann, bob = await server.token(email="ann@x.org"), await server.token(email="bob@x.org")
    await save(server, ann, "prompt", "hers", "for {x}")
    await save(server, ann, "pipeline", "p", "hers(x)")
    job = await submit(server, ann, "p", {"x": "1"})
    await server.job_when(ann, job, lambda job: job["status"] == "success")
    _, log = await server.ask("GET", f"/api/jobs/{job}/run", ann)
    step = log["data"][0]["job_id"]

    for path in (f"/api/jobs/{job}/run", f"/api/jobs/{step}", f"/api/jobs/{step}/events"):
        assert (await server.ask("GET", path, bob))[0] == 404
        assert (await server.ask("GET", path, ann))[0] == 200
    for path in (f"/api/jobs/{job}/rerun", f"/api/jobs/{step}/retry"):
        assert (await server.ask("POST", path, bob, json={"node": "0"}))[0] == 404
    assert (await server.ask("DELETE", f"/api/jobs/{step}", bob))[0] == 404


async def test_lists_of_jobs_contain_steps_only_if_they_are_held(server: Live) -> None:
    ann, reviewer = await server.token(email="ann@x.org"), await server.token("reviewer", email="rev@x.org")
    await server.model("held", kind="echo", review="always")
    await save(server, ann, "prompt", "asks", "for {x}", model="held")
    await save(server, ann, "pipeline", "p", "asks(x)")
    job = await submit(server, ann, "p", {"x": "1"})
    await server.job_when(ann, job, lambda job: job["parked_at"] is not None)

    async def listed(token: str, query: str = "") -> list[str | None]:
        _, page = await server.ask("GET", f"/api/jobs?total=1{query}", token)
        assert page["total"] == len(page["data"])
        return [job["parent"] for job in page["data"]]

    assert await listed(ann) == [None]
    assert await listed(reviewer) == [None]
    assert await listed(ann, "&status=human") == []
    assert await listed(reviewer, "&status=human") == [job]


async def test_a_step_that_is_not_due_by_the_clock_of_the_database_is_asked_for_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = list[float]()

    async def note_wait(services: Services, job_id: str, seconds: float, has_changed: Callable[[Job], bool]) -> None:
        waits.append(seconds)

    monkeypatch.setattr(step, "wait_until", note_wait)
    async with live(tmp_path) as server:
        postponed = await server.services.store.jobs.insert(a_job(lane="later"), actor="test", due_seconds=60)
        # given a process whose clock says that the step is due
        await step._advance(server.services, postponed, perform, due_in=-1)
        await step._advance(server.services, postponed, perform, due_in=0.3)
    assert waits == [1.0, 0.3]
