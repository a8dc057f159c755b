"""Pipeline runs: reviews of steps, failures, cancellation, concurrent steps, and partial reruns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from fakes.echoing import REPLY, EchoingModel
from signoff.core.delivery import DeliveryTarget
from signoff.core.filters import JobFilter
from signoff.stores.schema import jobs
from signoff.work.admin.people import create_token, create_user
from signoff.work.jobs.retry import copy_for_retry
from signoff.work.pipelines import run as pipeline
from support.live_server import Live, chat, until, words
from support.pipelines import call, composing, log, save, submit
from support.stores import execute

pytestmark = pytest.mark.anyio


@pytest.fixture
async def upstream() -> AsyncIterator[EchoingModel]:
    """Yield a model server."""
    async with EchoingModel() as upstream:
        yield upstream


@pytest.fixture
async def server(tmp_path: Path, upstream: EchoingModel) -> AsyncIterator[Live]:
    """Yield a server with two prompts of Ann, of which one uses a model whose answers are always held."""
    async with composing(tmp_path, upstream, hold_seconds=20) as server:
        await server.model("held", kind="openai", url=upstream.url, review="always")
        ann_token = await server.token(email="ann@x.org")
        await save(server, ann_token, "prompt", "free", "free {x}")
        await save(server, ann_token, "prompt", "held_one", "held {x}", model="held")
        yield server


async def ann_token(server: Live) -> str:
    """Return a new token of Ann."""
    return await server.token(email="ann@x.org")


async def reviewer_token(server: Live) -> str:
    """Return a new token of the reviewer."""
    return await server.token("reviewer", email="rev@x.org")


async def wait_until_ended(server: Live, token: str, job_id: str, status: str = "success") -> dict[str, Any]:
    """Wait until the job has ended, assert its status, and return it."""
    job = await server.job_when(token, job_id, lambda job: job["status"] in {"success", "fail"})
    assert job["status"] == status, job
    return job


async def wait_until_parked(server: Live, token: str, job_id: str) -> None:
    """Wait until the run is parked."""
    await server.job_when(token, job_id, lambda job: job["parked_at"] is not None)


async def held_steps(server: Live) -> list[dict[str, Any]]:
    """Return all held jobs."""
    _, page = await server.ask("GET", "/api/jobs?status=human", await reviewer_token(server))
    return page["data"]


async def review(server: Live, job_id: str, status: str, **more: Any) -> None:
    """Submit a verdict as the reviewer."""
    response = await server.ask(
        "POST", "/reviewJob", await reviewer_token(server), json={"id": job_id, "status": status} | more
    )
    assert response == (200, {"status": "success"})


async def event_verbs(server: Live, job_id: str) -> list[str]:
    """Return the verbs of the events of the job."""
    _, events = await server.ask("GET", f"/api/jobs/{job_id}/events", await reviewer_token(server))
    return [event["verb"] for event in events["data"]]


# Reviews of steps


@pytest.mark.parametrize("edit", [{}, {"response": "edited"}])
async def test_a_held_step_parks_its_run_and_the_verdict_resumes_it(
    server: Live, upstream: EchoingModel, edit: dict[str, str]
) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=concat(free(x=held_one(x)), free(x)))")
    job = await submit(server, token, "p", {"x": "1"})
    await wait_until_parked(server, token, job)
    [step] = await held_steps(server)
    assert sorted(upstream.prompts) == ["free 1", "held 1"], "what needs no verdict is asked meanwhile"

    await review(server, step["job_id"], "success", **edit)

    content = edit.get("response") or f"{REPLY}held 1"
    inner = f"{REPLY}free {content}{REPLY}free 1"
    assert (await wait_until_ended(server, token, job))["response"] == f"{REPLY}free {inner}"
    assert await event_verbs(server, job) == ["submit", "claim", "park", "wake", "claim", "succeed"]
    assert max(upstream.times().values()) == 1
    assert (await server.ask("GET", f"/api/jobs/{job}", token))[1]["attempt"] == 1


async def test_a_rejected_step_fails_its_run_and_is_named_in_the_error(server: Live) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=held_one(x))")
    job = await submit(server, token, "p", {"x": "1"})
    await wait_until_parked(server, token, job)
    [step] = await held_steps(server)

    await review(server, step["job_id"], "fail", reason="too rude")

    failed = await wait_until_ended(server, token, job, "fail")
    assert failed["error"] == {"code": "rejected", "message": "`held_one` failed: too rude", "status": 403}


async def test_a_step_gets_a_second_round_with_an_edited_payload_while_its_run_waits(
    server: Live, upstream: EchoingModel
) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=held_one(x))")
    job = await submit(server, token, "p", {"x": "1"})
    await wait_until_parked(server, token, job)
    [step] = await held_steps(server)

    await review(server, step["job_id"], "bot", payload=chat("held otherwise", "held"))
    again = await until(lambda: step_of_later_round(server, step["round"]))
    await review(server, again["job_id"], "success")

    assert (await wait_until_ended(server, token, job))["response"] == f"{REPLY}free {REPLY}held otherwise"
    assert upstream.prompts == ["held 1", "held otherwise", f"free {REPLY}held otherwise"]


async def step_of_later_round(server: Live, before: int) -> dict[str, Any] | None:
    """Return a held step whose round is after `before`; None if there is none."""
    return next((step for step in await held_steps(server) if step["round"] > before), None)


async def test_two_held_steps_can_be_approved_in_any_order(server: Live, upstream: EchoingModel) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "concat(free(x=held_one(x)), free(x=held_one(x=y)))")
    job = await submit(server, token, "p", {"x": "1", "y": "2"})
    await wait_until_parked(server, token, job)
    first, second = sorted(await held_steps(server), key=lambda step: step["node"], reverse=True)

    await review(server, first["job_id"], "success")
    await server.job_when(token, job, lambda job: f"free {REPLY}held 2" in upstream.answered)
    await wait_until_parked(server, token, job)
    await review(server, second["job_id"], "success")

    assert (await wait_until_ended(server, token, job))[
        "response"
    ] == f"{REPLY}free {REPLY}held 1{REPLY}free {REPLY}held 2"
    assert max(upstream.times().values()) == 1


async def test_a_held_step_of_a_nested_pipeline_parks_all_runs_that_wait_for_it(
    server: Live, upstream: EchoingModel
) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "inner", "free(x=held_one(x))")
    await save(server, token, "pipeline", "outer", "free(x=inner(x))")
    job = await submit(server, token, "outer", {"x": "1"})
    await wait_until_parked(server, token, job)
    [step] = await held_steps(server)

    await review(server, step["job_id"], "success")

    assert (await wait_until_ended(server, token, job))["response"] == f"{REPLY}free {REPLY}free {REPLY}held 1"
    assert max(upstream.times().values()) == 1


async def test_a_waiting_caller_of_a_parked_run_waits_for_the_verdict(server: Live) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=held_one(x))")
    body = chat("1", "p")

    status, payload = await server.ask("POST", "/v1/chat/completions", token, json=body, headers={"prefer": "wait=1"})
    assert (status, payload["error"]["code"]) == (504, "review_pending")
    job = payload["error"]["job_id"]
    [step] = await held_steps(server)
    await review(server, step["job_id"], "success")

    assert words((await wait_until_ended(server, token, job))["response"]) == f"{REPLY}free {REPLY}held 1"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_waiting_caller_gets_the_approved_answer_on_the_same_connection(server: Live, stream: bool) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=held_one(x))")

    async def approve() -> None:
        async def first_held_step() -> dict[str, Any] | None:
            return next(iter(await held_steps(server)), None)

        await review(server, (await until(first_held_step))["job_id"], "success")

    task = server.services.runtime.background.spawn(approve())
    body = chat("1", "p") | {"stream": stream}
    status, payload = await server.ask("POST", "/v1/chat/completions", token, json=body)
    await task
    assert status == 200
    assert f"{REPLY}free {REPLY}held 1" in (payload if stream else words(payload))


async def test_a_timed_out_call_of_a_parked_run_returns_the_id_of_its_job(server: Live) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "held_one(x)")

    status, payload = await call(server, token, "p", {"x": "1"}, headers={"prefer": "wait=3"})

    assert (status, payload["code"]) == (504, "review_pending")
    assert (await server.ask("GET", f"/api/jobs/{payload['job_id']}", token))[1]["response"] is None


# Held answers stay hidden


async def test_a_held_answer_cannot_be_read_in_the_steps_of_its_run(server: Live) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=free(x))")
    _, submitted = await server.ask("POST", "/enqueue", token, json=chat("1", "p"))
    job = submitted["job_id"]
    await server.job_when(token, job, lambda job: job["status"] == "human")
    [outer, inner] = await log(server, await reviewer_token(server), job)
    assert outer["output"] == f"{REPLY}free {REPLY}free 1"

    for entry in await log(server, token, job):
        assert (entry["state"], entry["output"], entry["arguments"]) == ("done", None, None)
    for step in (outer, inner):
        assert (await server.ask("GET", f"/api/jobs/{step['job_id']}", token))[0] == 404

    await review(server, job, "success")
    assert (await log(server, token, job))[0]["output"] == f"{REPLY}free {REPLY}free 1"
    assert (await server.ask("GET", f"/api/jobs/{outer['job_id']}", token))[0] == 200


async def test_a_second_round_of_a_run_repeats_every_step(server: Live, upstream: EchoingModel) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=free(x))")
    _, submitted = await server.ask("POST", "/enqueue", token, json=chat("1", "p"))
    job = submitted["job_id"]
    await server.job_when(token, job, lambda job: job["status"] == "human")

    await review(server, job, "bot", payload=chat("2", "p"))
    await until(lambda: is_held_again(server, job))
    await review(server, job, "success")

    assert words((await wait_until_ended(server, token, job))["response"]) == f"{REPLY}free {REPLY}free 2"
    assert upstream.prompts == ["free 1", f"free {REPLY}free 1", "free 2", f"free {REPLY}free 2"]


async def is_held_again(server: Live, job_id: str) -> bool | None:
    """Return True if the job is held in its second round; else None."""
    _, job = await server.ask("GET", f"/api/jobs/{job_id}", await reviewer_token(server))
    return (job["status"] == "human" and job["round"] == 2) or None


# Ends


async def test_an_error_of_a_model_is_the_error_of_the_run_with_its_status_and_message(
    server: Live, upstream: EchoingModel
) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "concat(free(x), held_one(x))")
    upstream.statuses["free 1"] = 418

    status, payload = await call(server, token, "p", {"x": "1"})

    assert (status, payload["code"]) == (418, "model_error")
    assert "`free` failed: " in payload["detail"]
    assert "No, not that." in payload["detail"]
    await until(lambda: has_no_unfinished_jobs(server))


async def has_no_unfinished_jobs(server: Live) -> bool | None:
    """Return True if all jobs have ended; else None."""
    counts = [await server.services.store.jobs.count(job_filter, at_most=10_000) for job_filter in unfinished_filters()]
    return sum(counts) == 0 or None


def unfinished_filters() -> list[Any]:
    """Return the filters that select unfinished jobs."""
    return [JobFilter(status="bot"), JobFilter(status="human")]


async def test_a_temporary_error_is_retried_by_the_step_only(server: Live, upstream: EchoingModel) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=free(x))")
    upstream.statuses["free 1"] = 503

    job = await submit(server, token, "p", {"x": "1"})
    await upstream.received(2)
    upstream.statuses.clear()

    assert (await wait_until_ended(server, token, job))["response"] == f"{REPLY}free {REPLY}free 1"
    assert await event_verbs(server, job) == ["submit", "claim", "succeed"]


@pytest.mark.parametrize("held", [False, True])
async def test_cancelling_a_run_cancels_its_unfinished_steps(server: Live, upstream: EchoingModel, held: bool) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "inner", "held_one(x)" if held else "free(x)")
    await save(server, token, "pipeline", "p", "free(x=inner(x))")
    if not held:
        upstream.gate.clear()
    job = await submit(server, token, "p", {"x": "1"})
    if held:
        await wait_until_parked(server, token, job)
    await upstream.received()

    assert (await server.ask("DELETE", f"/api/jobs/{job}", token))[0] == 200

    await until(lambda: has_no_unfinished_jobs(server))
    upstream.gate.set()
    [outer, inner] = await log(server, await reviewer_token(server), job)
    assert (outer["state"], inner["state"], inner["error"]["code"]) == ("waiting", "failed", "cancelled")
    assert len(upstream.prompts) == 1


async def test_a_caller_who_leaves_cancels_the_run(
    server: Live, upstream: EchoingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "STOP_SECONDS", 600)
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=free(x))")
    upstream.gate.clear()
    task = asyncio.ensure_future(server.ask("POST", "/v1/chat/completions", token, json=chat("1", "p")))
    await upstream.received()
    task.cancel()
    await until(lambda: has_no_unfinished_jobs(server))
    upstream.gate.set()

    _, page = await server.ask("GET", "/api/jobs", token)
    [run] = page["data"]
    assert (run["status"], run["error"]["code"]) == ("fail", "cancelled")
    assert upstream.prompts == ["free 1"]


# The log


async def test_the_log_of_a_run_has_an_entry_for_every_call(server: Live) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "inner", "free(x)")
    await save(server, token, "pipeline", "p", "builtin_concat(free(x), inner(x=uppercase(x)))")
    before = time.time()
    job = await submit(server, token, "p", {"x": "a"})
    await wait_until_ended(server, token, job)

    entries = await log(server, token, job)

    calls = [(logged["node"], logged["kind"], logged["name"], logged["state"], logged["output"]) for logged in entries]
    assert calls == [
        ("0", "function", "builtin_concat", "done", f"{REPLY}free a {REPLY}free A"),
        ("0.0", "prompt", "free", "done", f"{REPLY}free a"),
        ("0.1", "pipeline", "inner", "done", f"{REPLY}free A"),
        ("0.1.0", "function", "uppercase", "done", "A"),
    ]
    assert [entry["arguments"] for entry in entries[:3]] == [
        {"x": f"{REPLY}free a", "y": f"{REPLY}free A"},
        {"x": "a"},
        {"x": "A"},
    ]
    assert [*entries[3]["arguments"].values()] == ["a"]
    assert [entry["usage"] and entry["usage"]["total_tokens"] for entry in entries] == [None, 5, None, None]
    assert all(0 <= entry["seconds"] < time.time() - before for entry in entries)
    assert [entry["version"] for entry in entries] == [None, 1, 1, None]
    [nested] = await log(server, token, entries[2]["job_id"])
    assert (nested["name"], nested["output"], nested["usage"]["total_tokens"]) == ("free", f"{REPLY}free A", 5)


async def test_a_job_that_is_not_a_run_has_no_run_log(server: Live) -> None:
    token = await ann_token(server)
    _, job = await server.ask("POST", "/api/jobs", token, json={"target": "echo", "body": chat("1")})

    assert (await server.ask("GET", f"/api/jobs/{job['job_id']}/run", token))[0] == 400


async def test_usage_is_recorded_for_the_steps_and_not_for_the_run(server: Live) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=free(x))")
    status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat("1", "p"))
    job = await submit(server, token, "p", {"x": "2"})
    await wait_until_ended(server, token, job)

    _, page = await server.ask("GET", "/api/jobs", token)
    assert status == 200
    assert [(run["usage"], run["cost"]) for run in page["data"]] == [(None, None), (None, None)]
    steps = [entry["job_id"] for entry in await log(server, token, job)]
    usages = [(await server.ask("GET", f"/api/jobs/{step}", token))[1]["usage"] for step in steps]
    assert [usage["prompt_tokens"] for usage in usages] == [3, 3]


async def test_a_step_is_answered_from_the_cache_if_its_model_allows_it(server: Live, upstream: EchoingModel) -> None:
    token = await ann_token(server)
    await server.model("kept", kind="openai", url=upstream.url, cache="always")
    await save(server, token, "prompt", "known", "known {x}", model="kept")
    await save(server, token, "pipeline", "p", "free(x=known(x))")

    jobs = [await submit_and_end(server, token) for _ in range(2)]

    assert jobs[0]["response"] == jobs[1]["response"]
    assert upstream.times() == {"known 1": 1, f"free {REPLY}known 1": 2}
    assert await event_verbs(server, (await log(server, token, jobs[1]["job_id"]))[1]["job_id"]) == ["hit"]


async def test_the_cache_control_of_a_run_applies_to_its_steps(server: Live, upstream: EchoingModel) -> None:
    token = await ann_token(server)
    await server.model("kept", kind="openai", url=upstream.url, cache="always")
    await save(server, token, "prompt", "known", "known {x}", model="kept")
    await save(server, token, "pipeline", "inner", "known(x)")
    await save(server, token, "pipeline", "p", "concat(known(x), inner(x=uppercase(x)))")

    async def count_prompts_after_a_call(directive: str) -> int:
        headers = {"cache-control": directive} if directive else {}
        assert (await call(server, token, "p", {"x": "a"}, headers=headers))[0] == 200
        return len(upstream.prompts)

    assert [await count_prompts_after_a_call("no-store") for _ in range(2)] == [2, 4]
    assert [await count_prompts_after_a_call("") for _ in range(2)] == [6, 6]
    assert [
        await count_prompts_after_a_call("no-cache"),
        await count_prompts_after_a_call("max-age=0"),
        await count_prompts_after_a_call(""),
    ] == [8, 10, 10]


async def test_a_token_with_the_cache_rule_never_has_no_cached_steps(server: Live, upstream: EchoingModel) -> None:
    user = await create_user(server.services, "ann@x.org", "user")
    token = await create_token(server.services, user, cache="never")
    await save(server, token, "prompt", "known", "known {x}")
    await save(server, token, "pipeline", "p", "known(x)")

    for _ in range(2):
        assert (await call(server, token, "p", {"x": "a"}))[0] == 200
    assert upstream.times() == {"known a": 2}


# Limits of steps


async def test_the_caller_of_a_run_is_told_that_a_budget_is_exhausted(server: Live, upstream: EchoingModel) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=free(x))")
    await limit(server, tokens_per_month=10)
    status, payload = await server.ask("POST", "/v1/chat/completions", token, json=chat("1", "p"))

    assert (status, payload["error"]["code"]) == (429, "insufficient_quota"), payload


async def limit(server: Live, **numbers: int) -> None:
    """Set the limits of each user."""
    response = await server.ask("PUT", "/api/limits/each", await server.token("admin"), json=numbers)
    assert response[0] == 200, response


async def test_a_run_with_a_postponed_step_frees_its_worker_and_resumes_later(
    tmp_path: Path, upstream: EchoingModel
) -> None:
    async with composing(tmp_path, upstream, concurrency=1) as server:
        token = await ann_token(server)
        await save(server, token, "prompt", "free", "free {x}")
        await save(server, token, "pipeline", "p", "free(x)")
        await limit(server, requests_per_minute=1)
        runs = [await submit(server, token, "p", {"x": str(number)}) for number in range(2)]
        # when the second run exceeds the limit for a minute, it is parked, and another user's job is done meanwhile
        await until(lambda: any_parked(server, token, runs))
        _, other = await server.ask(
            "POST", "/api/jobs", await reviewer_token(server), json={"target": "echo", "body": {}}
        )
        await wait_until_ended(server, await reviewer_token(server), other["job_id"])
        # and it resumes when the limit allows it
        await limit(server, requests_per_minute=100)
        [step] = [job for job in await server.services.store.jobs.list(JobFilter(status="bot")) if job.parent_id]
        await make_due(server, step.id)
        for run in runs:
            await wait_until_ended(server, token, run)
        assert sorted(upstream.prompts) == ["free 0", "free 1"]


async def any_parked(server: Live, token: str, runs: list[str]) -> bool | None:
    """Return True if any of the runs is parked; else None."""
    jobs = [(await server.ask("GET", f"/api/jobs/{run}", token))[1] for run in runs]
    return any(run["parked_at"] for run in jobs) or None


async def make_due(server: Live, job_id: str) -> None:
    """Set the due time of the job to the past."""
    statement = sa.update(jobs).where(jobs.c.id == job_id).values(due_at=0)
    await execute(server.services.store, statement)


async def submit_and_end(server: Live, token: str) -> dict[str, Any]:
    """Submit a run of the pipeline `p`, wait until it has succeeded, and return it."""
    job = await submit(server, token, "p", {"x": "1"})
    return await wait_until_ended(server, token, job)


# Partial reruns


async def test_a_rerun_has_the_upstream_key_and_the_delivery_targets_of_the_first_run(
    server: Live, upstream: EchoingModel
) -> None:
    token = await ann_token(server)
    _, key = await server.ask("POST", "/api/keys", token, json={"name": "mine", "key": "sk-ann"})
    await save(server, token, "pipeline", "p", "free(x)")
    request = {"pipeline_name": "p", "args": {"x": "1"}, "openaikey_id": key["id"]}
    assert (await server.ask("POST", "/api/pipeline/call", token, json=request))[0] == 200
    [old] = await server.services.store.jobs.list(JobFilter(with_steps=False))

    _, new = await server.ask("POST", f"/api/jobs/{old.id}/rerun", token, json={"node": "0"})
    await wait_until_ended(server, token, new["job_id"])

    assert upstream.keys == ["Bearer sk-ann"] * 2
    job = msgspec.structs.replace(old, deliver=(DeliveryTarget(kind="topic", address="answers", host="orders"),))
    caller = await server.services.caches.callers.by_email("ann@x.org")
    assert (await copy_for_retry(server.services, caller, job)).deliver == job.deliver


@pytest.mark.parametrize(
    ("change", "second", "prompts"),
    [
        ({"node": "0.1.0", "output": "other"}, "free other", ["free other"]),
        ({"node": "0.1", "payload": chat("free new", "m")}, "free new", ["free new"]),
        ({"node": "0.1", "output": "by hand"}, None, []),
        ({"node": "0.0"}, "free 2", ["free 1"]),
    ],
)
async def test_a_partial_rerun_repeats_only_the_changed_steps(
    server: Live, upstream: EchoingModel, change: dict[str, Any], second: str | None, prompts: list[str]
) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "builtin_concat(free(x), free(x=uppercase(y)))")
    job = await submit(server, token, "p", {"x": "1", "y": "2"})
    old = await wait_until_ended(server, token, job)
    upstream.prompts.clear()

    status, new = await server.ask("POST", f"/api/jobs/{job}/rerun", token, json=change)

    assert (status, new.get("retry_of")) == (202, job), new
    answer = await wait_until_ended(server, token, new["job_id"])
    assert answer["response"] == f"{REPLY}free 1 " + ("by hand" if second is None else REPLY + second)
    assert upstream.prompts == prompts
    assert (await server.ask("GET", f"/api/jobs/{job}", token))[1] == old
    counted = [entry["node"] for entry in await log(server, token, new["job_id"]) if entry["usage"]]
    assert len(counted) == len(prompts), "what was not asked again is not counted again"


async def test_an_impossible_partial_rerun_is_refused_with_the_reason(server: Live) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x=uppercase(x))")
    job = await submit(server, token, "p", {"x": "1"})
    await wait_until_ended(server, token, job)

    for change, reason in (
        ({"node": "0.7"}, "`node` must be the position of a call"),
        ({}, "node"),
        ({"node": "0.0", "payload": 1}, "is a function"),
    ):
        status, payload = await server.ask("POST", f"/api/jobs/{job}/rerun", token, json=change)
        assert (status, reason in payload["detail"]) == (400, True), payload


async def test_a_rerun_is_under_the_review_that_applies_now(server: Live, upstream: EchoingModel) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "inner", "free(x)")
    await save(server, token, "pipeline", "p", "builtin_concat(free(x), inner(x))")
    job = await submit(server, token, "p", {"x": "1"})
    await wait_until_ended(server, token, job)
    # when the model of its prompt comes under review
    await server.model("m", kind="openai", url=upstream.url, review="always", default=True)
    # then a new question to it is held, as is the old one
    for change in ({"node": "0.0", "payload": chat("ANYTHING NEW", "m")}, {"node": "0.0"}):
        _, new = await server.ask("POST", f"/api/jobs/{job}/rerun", token, json=change)
        await wait_until_parked(server, token, new["job_id"])
    # and the owner cannot supply an answer of that model, nor of a pipeline that asks it
    for node in ("0.0", "0.1"):
        change = {"node": node, "output": "FORGED"}
        status, error = await server.ask("POST", f"/api/jobs/{job}/rerun", token, json=change)
        assert (status, error["code"]) == (403, "forbidden")
        admin = await server.token("admin")
        assert (await server.ask("POST", f"/api/jobs/{job}/rerun", admin, json=change))[0] == 202


async def test_the_output_of_a_rejected_call_is_for_reviewers(server: Live) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "held_one(x)")
    job = await submit(server, token, "p", {"x": "1"})
    await wait_until_parked(server, token, job)
    [step] = await held_steps(server)
    await review(server, step["job_id"], "fail", reason="no")
    await wait_until_ended(server, token, job, "fail")
    change = {"node": "0", "output": "FORGED"}
    assert (await server.ask("POST", f"/api/jobs/{job}/rerun", token, json=change))[0] == 403


async def test_the_payload_of_a_rerun_is_checked_as_any_request(server: Live) -> None:
    token = await ann_token(server)
    await save(server, token, "pipeline", "p", "free(x)")
    job = await submit(server, token, "p", {"x": "1"})
    await wait_until_ended(server, token, job)
    body = '{"node":"0","payload":{"model":"m","Model":"held","messages":[{"role":"user","content":"x"}]}}'
    status, error = await server.ask("POST", f"/api/jobs/{job}/rerun", token, data=body)
    assert (status, error["code"]) == (400, "bad_request")


# Concurrency


async def test_independent_calls_of_a_pipeline_run_concurrently(server: Live, upstream: EchoingModel) -> None:
    token = await ann_token(server)
    leaves = [f"length(uppercase(lowercase(free(x=arg{number}))))" for number in range(50)]
    while len(leaves) > 1:
        leaves = [f"concat({', '.join(pair)})" for pair in zip(leaves[::2], leaves[1::2], strict=False)] + (
            leaves[-1:] if len(leaves) % 2 else []
        )
    await save(server, token, "pipeline", "big", leaves[0])
    upstream.gate.clear()
    args = {f"arg{number}": str(number) for number in range(50)}

    task = asyncio.ensure_future(call(server, token, "big", args))
    await upstream.received(50)  # none of which is answered yet
    upstream.gate.set()

    status, payload = await task
    assert status == 200, payload
    assert len(upstream.prompts) == 50
    job = (await server.ask("GET", "/api/jobs?limit=1", token))[1]["data"][0]["job_id"]
    entries = await log(server, token, job)
    assert len(entries) == 249
    assert {entry["state"] for entry in entries} == {"done"}


async def test_a_run_whose_calls_are_too_large_together_fails(tmp_path: Path, upstream: EchoingModel) -> None:
    async with composing(tmp_path, upstream, max_run_bytes=100_000) as server:
        token = await ann_token(server)
        await save(server, token, "prompt", "double", "{x}{x}", model="echo")
        await save(server, token, "pipeline", "eight", "double(" * 3 + "x" + ")" * 3)
        await save(server, token, "pipeline", "doubled", "double(" * 24 + "x" + ")" * 24)
        await save(server, token, "pipeline", "nested", "eight(" * 8 + "x" + ")" * 8)
        await save(server, token, "pipeline", "joined", "concat(" * 24 + "x" + ", x)" * 24)
        status, answer = await call(server, token, "eight", {"x": "0123456789abcdef"})
        assert (status, answer["response"]) == (200, "0123456789abcdef" * 8)
        for name in ("doubled", "nested"):
            status, refusal = await call(server, token, name, {"x": "0123456789abcdef"})
            assert (status, refusal["code"]) == (413, "run_too_large"), refusal
        # a call of a function counts its arguments and its result
        status, refusal = await call(server, token, "joined", {"x": "a" * 2_000})
        assert (status, refusal["code"]) == (413, "run_too_large"), refusal
        every_job = await server.services.store.jobs.list(JobFilter(limit=1000))
        assert sum(len(job.body) + len(job.response or b"") for job in every_job) < 4 * 100_000
