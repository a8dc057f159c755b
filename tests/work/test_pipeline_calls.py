"""Pipelines as they are called: the users' own cases, whatever stands in a value, and who may call what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from fakes.echoing import REPLY, EchoingModel
from signoff.work.admin.people import create_token, create_user
from support.live_server import Live, chat, words
from support.pipeline_cases import PIPELINES
from support.pipelines import call, composing, save, save_prompts, submit

pytestmark = pytest.mark.anyio


@pytest.fixture
async def upstream() -> AsyncIterator[EchoingModel]:
    """Yield a model server."""
    async with EchoingModel() as upstream:
        yield upstream


@pytest.fixture
async def server(tmp_path: Path, upstream: EchoingModel) -> AsyncIterator[Live]:
    """Yield a server with the cases' functions and a model."""
    async with composing(tmp_path, upstream) as server:
        yield server


CASES = [*PIPELINES["runs"], *PIPELINES["builtins"]]


@pytest.mark.parametrize("by", ["token", "session"])
async def test_every_case_of_its_users_gives_what_they_say(server: Live, by: str) -> None:
    token = await server.token()
    headers = {} if by == "token" else await signed_in(server)
    await save_prompts(server, token)
    for number, case in enumerate(CASES):
        name = f"case{number}"
        await save(server, token, "pipeline", name, case["pipeline"])

        status, told = await call(server, token if by == "token" else None, name, case["args"], headers=headers)

        if "error" in case:
            assert (status, told["code"]) == (422, "function_failed")
            assert "`divide`" in told["detail"]
            assert "division by zero" in told["detail"]
        else:
            assert (status, told) == (200, {"success": True, "response": case["response"]}), case


async def signed_in(server: Live) -> dict[str, str]:
    """The header that a browser sends, once the user has signed in."""
    who = {"email": "user@example.com", "password": "some secret words"}
    await create_user(server.services, who["email"], "user", who["password"])
    async with server.http.post(server.url + "/api/session", json=who) as response:
        assert response.status == 200
        return {"cookie": response.headers["set-cookie"].partition(";")[0]}


# Values are text


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
async def test_a_value_is_text_whatever_it_looks_like(server: Live, upstream: EchoingModel, text: str) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "p", "prompt_b(b_arg=builtin_identity(s=prompt_a(a_arg)))")

    status, told = await call(server, token, "p", {"a_arg": text})

    first = f"{REPLY}this is {text}"
    assert (status, told) == (200, {"success": True, "response": f"{REPLY}this is {first}"})
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
async def test_arguments_that_do_not_fit_are_refused_before_anything_is_asked(
    server: Live, upstream: EchoingModel, args: Any, why: str
) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "p", "builtin_concat(prompt_a(a_arg), b_arg)")

    status, told = await call(server, token, "p", args)

    assert (status, why in told["detail"]) == (400, True)
    assert upstream.prompts == []


# As a model


async def test_a_pipeline_is_asked_as_a_model_with_an_object_or_with_its_only_text(server: Live) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "one", "prompt_a(a_arg)")
    await save(server, token, "pipeline", "two", "builtin_concat(prompt_a(x), prompt_b(b_arg=y))")
    both = f"{REPLY}this is 1 {REPLY}this is [2, 3]"

    async def said(text: str, model: str) -> str:
        status, told = await server.ask("POST", "/v1/chat/completions", token, json=chat(text, model))
        assert status == 200, told
        return words(told)

    assert await said("hello", "one") == f"{REPLY}this is hello"
    assert await said(json.dumps({"a_arg": "hello"}), "one") == f"{REPLY}this is hello"
    assert await said('{"other": 1}', "one") == REPLY + 'this is {"other": 1}'
    assert await said(json.dumps({"x": 1, "y": [2, 3]}), "two") == both
    status, told = await server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "two"))
    assert (status, told["error"]["code"]) == (400, "bad_request")


async def test_the_official_client_streams_a_pipeline(server: Live) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "one", "prompt_a(a_arg)", shared=False)
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=token) as official:
        stream = await official.chat.completions.create(**chat("hello", "one"), stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(pieces) == f"{REPLY}this is hello"


async def test_a_run_with_a_key_is_asked_once(server: Live, upstream: EchoingModel) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "one", "prompt_a(a_arg)")
    key = {"headers": {"idempotency-key": "k"}}

    for _ in range(2):
        assert (await call(server, token, "one", {"a_arg": "x"}, **key))[0] == 200
        status, told = await server.ask(
            "POST", "/v1/chat/completions", token, json=chat("y", "one"), headers={"idempotency-key": "l"}
        )
        assert (status, words(told)) == (200, f"{REPLY}this is y")

    assert upstream.prompts == ["this is x", "this is y"]


async def test_equal_calls_that_could_share_an_answer_run_each_for_itself(server: Live) -> None:
    token = await server.token()
    await save_prompts(server, token)
    await save(server, token, "pipeline", "one", "prompt_a(a_arg)")

    status, told = await server.ask("POST", "/v1/chat/completions", token, json=chat("y", "one", temperature=0))

    assert (status, words(told)) == (200, f"{REPLY}this is y")


# Who may


async def test_a_pipeline_that_is_called_as_one_is_run_whatever_else_has_its_name(server: Live) -> None:
    token = await server.token()
    number = await save(server, token, "pipeline", "p", "builtin_identity(x)")
    await server.model("p")
    for asked in ("p", number):
        assert await call(server, token, asked, {"x": "1"}) == (200, {"success": True, "response": "1"})


async def test_nobody_runs_anothers_pipeline_unless_it_is_shared(server: Live, upstream: EchoingModel) -> None:
    ann, bob, admin = (
        await server.token(email="ann@x.org"),
        await server.token(email="bob@x.org"),
        await server.token("admin", email="root@x.org"),
    )
    await save(server, ann, "prompt", "hers", "for {x}", shared=True)
    number = await save(server, ann, "pipeline", "p", "hers(x)")
    await save(server, ann, "pipeline", "common", "hers(x)", shared=True)
    for asked in ("p", number):
        status, told = await call(server, bob, asked, {"x": "1"})
        assert (status, told["code"]) == (404, "composed_not_found")
    for path, body in (("/v1/chat/completions", chat("1", "p")), ("/api/jobs", {"target": "p", "body": chat("1")})):
        assert (await server.ask("POST", path, bob, json=body))[0] == 404
    assert upstream.prompts == []

    assert (await call(server, None, "common", {"x": "1"}))[0] == 401
    for token in (bob, admin):
        assert (await call(server, token, "common", {"x": "1"}))[1]["response"] == f"{REPLY}for 1"
    assert (await call(server, admin, "p", {"x": "1"}))[0] == 200


async def test_a_run_sees_no_more_than_the_token_that_asked_for_it(server: Live) -> None:
    ann = await server.token(email="ann@x.org")
    root = await create_user(server.services, "root@x.org", "admin")
    lesser, full = [await create_token(server.services, root, role=role) for role in ("user", "admin")]
    await save(server, ann, "prompt", "hers", "for {x}")
    await save(server, full, "pipeline", "listed", "get_prompts()")

    assert (await call(server, lesser, "listed", {}))[1]["response"] == "[]"
    assert (await call(server, full, "listed", {}))[1]["response"] == '["hers"]'


async def test_a_run_asks_with_the_key_that_its_caller_chose_at_every_step_and_with_nobody_elses(
    server: Live, upstream: EchoingModel
) -> None:
    ann, bob = await server.token(email="ann@x.org"), await server.token(email="bob@x.org")
    _, hers = await server.ask("POST", "/api/keys", ann, json={"name": "mine", "key": "sk-ann"})
    await save(server, ann, "prompt", "say", "say {x}", shared=True)
    await save(server, ann, "pipeline", "inner", "say(x)", shared=True)
    await save(server, ann, "pipeline", "outer", "concat(say(x), inner(x))", shared=True)
    body = {"pipeline_name": "outer", "args": {"x": "1"}, "openaikey_id": hers["id"]}

    status, told = await server.ask("POST", "/api/pipeline/call", ann, json=body)

    assert status == 200, told
    assert upstream.keys == ["Bearer sk-ann"] * 2
    assert (await server.ask("POST", "/api/pipeline/call", bob, json=body))[0] == 404
    assert len(upstream.prompts) == 2
    assert (await call(server, bob, "outer", {"x": "1"}))[0] == 200
    assert upstream.keys[2:] == [None, None]


async def test_models_and_what_can_be_asked_as_one_are_listed_to_those_who_may_use_them(server: Live) -> None:
    ann, bob = await server.token(email="ann@x.org"), await server.token(email="bob@x.org")
    await save(server, ann, "prompt", "hers", "for {x}")
    await save(server, ann, "prompt", "ours", "for {x}", shared=True)
    await save(server, ann, "pipeline", "common", "ours(x)", shared=True)
    await save(server, ann, "pipeline", "own", "ours(x)")

    async def listed(token: str) -> set[str]:
        return {model["id"] for model in (await server.ask("GET", "/v1/models", token))[1]["data"]}

    assert await listed(ann) >= {"hers", "ours", "common", "own", "m"}
    assert await listed(bob) & {"hers", "ours", "common", "own"} == {"ours", "common"}


async def test_a_run_and_its_log_are_its_owners(server: Live) -> None:
    ann, bob = await server.token(email="ann@x.org"), await server.token(email="bob@x.org")
    await save(server, ann, "prompt", "hers", "for {x}")
    await save(server, ann, "pipeline", "p", "hers(x)")
    job = await submit(server, ann, "p", {"x": "1"})
    await server.job_when(ann, job, lambda job: job["status"] == "success")
    _, told = await server.ask("GET", f"/api/jobs/{job}/run", ann)
    step = told["data"][0]["job_id"]

    for path in (f"/api/jobs/{job}/run", f"/api/jobs/{step}", f"/api/jobs/{step}/events"):
        assert (await server.ask("GET", path, bob))[0] == 404
        assert (await server.ask("GET", path, ann))[0] == 200
    for path in (f"/api/jobs/{job}/rerun", f"/api/jobs/{step}/retry"):
        assert (await server.ask("POST", path, bob, json={"node": "0"}))[0] == 404
    assert (await server.ask("DELETE", f"/api/jobs/{step}", bob))[0] == 404


async def test_lists_show_runs_and_their_steps_only_where_they_wait_for_a_reviewer(server: Live) -> None:
    ann, reviewer = await server.token(email="ann@x.org"), await server.token("reviewer", email="rev@x.org")
    await server.model("held", kind="echo", review="always")
    await save(server, ann, "prompt", "asks", "for {x}", model="held")
    await save(server, ann, "pipeline", "p", "asks(x)")
    job = await submit(server, ann, "p", {"x": "1"})
    await server.job_when(ann, job, lambda job: job["parked_at"] is not None)

    async def listed(token: str, which: str = "") -> list[str | None]:
        _, told = await server.ask("GET", f"/api/jobs{which}", token)
        assert told["total"] == len(told["data"])
        return [job["parent"] for job in told["data"]]

    assert await listed(ann) == [None]
    assert await listed(reviewer) == [None]
    assert await listed(ann, "?status=human") == []
    assert await listed(reviewer, "?status=human") == [job]
