"""Named policies on the path of a job: what they pass, hold, reject and ask, for each way to an answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fakes.http_server import RecordedRequest, Reply, json_reply
from fakes.upstream import fake_upstream
from fakes.webhook_receiver import SECRET, WebhookReceiver
from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job
from signoff.core.limits import Limit, limit_name
from signoff.errors import Overloaded
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
WAIT = {"prefer": "wait=0"}


async def save(server: Live, name: str, target: str, *rules: dict[str, Any], **more: Any) -> None:
    """Save a policy as an admin."""
    token = await server.token("admin")
    status, saved = await server.ask(
        "PUT", f"/api/policies/{name}", token, json={"target": target, "rules": rules, **more}
    )
    assert status == 200, saved


async def say(server: Live, token: str, text: str, model: str = "echo", **more: Any) -> tuple[int, Any]:
    """Ask for a chat answer, and wait for no review."""
    return await server.ask("POST", "/v1/chat/completions", token, json=chat(text, model, **more), headers=WAIT)


async def last_job(server: Live) -> Job:
    [job] = await server.services.store.jobs.list(JobFilter(newest_first=True, limit=1))
    return job


def rule(condition: str, then: str, **more: Any) -> dict[str, Any]:
    return {"if": condition, "then": then, **more}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_first_rule_that_matches_decides(tmp_path: Path, stream: bool) -> None:
    rules = [
        rule('answer.text.contains("secret")', "reject", code="leak", message="No secrets."),
        rule("answer.length > 10", "hold", queue="long", priority=7, deadline_seconds=50),
    ]
    async with live(tmp_path, log_before_answer=True) as server:
        await save(server, "texts", "echo", *rules)
        token = await server.token()
        status, answer = await say(server, token, "short", stream=stream)
        assert (status, "short" in str(answer)) == (200, True)
        passed = await last_job(server)
        assert (passed.status, passed.ruling.outcome, passed.ruling.rule) == ("success", "pass", None)  # type: ignore[union-attr]
        status, answer = await say(server, token, "a very long answer", stream=stream)
        held = await last_job(server)
        assert held.status == "human"
        assert "a very long answer" not in str(answer)
        assert (held.review_queue, held.review_priority, held.ruling.rule) == ("long", 7, 1)  # type: ignore[union-attr]
        assert held.ruling.signals == {"answer.length": 18}  # type: ignore[union-attr]
        assert held.review_deadline is not None
        assert (held.policy.name, held.policy.version) == ("texts", 1)
        status, answer = await say(server, token, "a secret", stream=stream)
        assert (await last_job(server)).status == "fail"
        assert "leak" in str(answer)
        assert "a secret" not in str(answer)
        if not stream:
            assert (status, answer["error"]["code"], answer["error"]["message"]) == (403, "leak", "No secrets.")


async def test_a_policy_that_reads_only_the_request_lets_the_answer_stream(tmp_path: Path) -> None:
    rules = [rule('request.tags.team == "legal"', "hold"), rule("request.tokens > 100000", "reject", code="too_long")]
    async with live(tmp_path, log_before_answer=True) as server:
        await save(server, "requests", "echo", *rules)
        token = await server.token()
        status, _ = await say(server, token, "hello")
        assert status == 504  # a condition that fails, as there is no tag, holds
        await save(server, "requests", "echo", rule('has(request.tags.team) && request.tags.team == "legal"', "hold"))
        status, _ = await say(server, token, "hello")
        job = await last_job(server)
        assert (status, job.policy.may_hold, job.policy.version, job.ruling.outcome) == (200, False, 2, "pass")  # type: ignore[union-attr]
        status, _ = await say(server, token, "hello", metadata={"team": "legal"})
        assert (status, (await last_job(server)).status) == (504, "human")


async def test_a_request_that_is_rejected_reaches_no_model(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        await save(server, "none", "echo/*", rule('request.user.endsWith("@example.com")', "reject", code="not_here"))
        status, answer = await say(server, await server.token(), "hello", "echo/hang")
        assert (status, answer["error"]["code"]) == (403, "not_here")
        job = await last_job(server)
        assert (job.status, job.ttft_us, job.ruling.signals) == ("fail", None, {"request.user": "user@example.com"})  # type: ignore[union-attr]


async def test_the_stricter_of_a_policy_and_the_review_mode_applies(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        await server.model("held", review="always")
        await save(server, "lenient", "held", rule('answer.text == "bad"', "reject"), default={"then": "pass"})
        token = await server.token()
        assert (await say(server, token, "good", "held"))[0] == 504
        assert (await say(server, token, "bad", "held"))[0] == 403


async def test_the_policy_of_a_prompt_adds_to_that_of_its_model(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        token = await server.token()
        await server.ask("POST", "/api/prompts", token, json={"name": "pr", "model": "echo", "body": "say {x}"})
        await save(server, "all", "*", rule('answer.text.contains("bad")', "hold"))
        await save(server, "of-prompt", "pr", rule('answer.text.contains("worse")', "hold"))
        statuses = [(await say(server, token, text, "pr"))[0] for text in ("good", "bad", "worse")]
        assert statuses == [200, 504, 504]
        assert [version.name for version in (await last_job(server)).policy.named] == ["all", "of-prompt"]


async def test_a_policy_may_ask_another_model_once(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        await server.model("second", fallbacks=[])
        await save(
            server,
            "two",
            "echo/*",
            rule('request.model != "second" && answer.truncated', "ask", ask="second"),
        )
        token = await server.token()
        status, _ = await say(server, token, "words", "echo/delay=0")
        assert status == 200
        await save(server, "two", "echo/*", rule('answer.text.contains("ask")', "ask", ask="second"))
        status, _ = await say(server, token, "ask again", "echo/delay=0")
        job = await last_job(server)
        assert (status, job.status, job.model, job.target) == (504, "human", "second", "echo/delay=0")
        assert job.prompt_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_log_probabilities_of_a_chat_count_where_it_is_translated(
    tmp_path: Path, path: str, *, stream: bool
) -> None:
    async with fake_upstream() as fake, live(tmp_path, log_before_answer=True) as server:
        await server.model("sure", kind="openai", url=fake.at("logprobs"))
        await save(server, "unsure", "sure", rule("signals.logprob_min < -2.0", "hold"))
        token = await server.token()
        for text, least in (("-0.5 -1.5", -1.5), ("-0.5 -2.5", -2.5), ("refuse", None)):
            question = {"max_tokens": 9, "messages": [{"role": "user", "content": text}]}
            body = {"model": "sure", "stream": stream} | ({"input": text} if path == "/v1/responses" else question)
            status, answer = await server.ask("POST", path, token, json=body, headers={"prefer": "wait=0"})
            job = await last_job(server)
            assert job.ruling is not None, answer
            assert job.ruling.signals == {"signals.logprob_min": least}
            assert (status == 200) == (job.status == "success") == (least == -1.5)
            assert b'logprob"' not in (job.response or b"")
            assert 'logprob"' not in json.dumps(answer)


async def test_the_other_model_is_asked_within_its_limits(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        await server.model("second", fallbacks=[])
        await save(server, "two", "echo/*", rule('request.model != "second" && answer.length > 0', "ask", ask="second"))
        token, limits = await server.token(), server.services.store.limits
        user = await server.services.store.people.user("user@example.com")
        assert user is not None
        of_second = Limit(scope="each", model="second", requests_per_minute=2, tokens_per_day=10**6)
        await limits.put_limit(of_second)
        await limits.put_limit(Limit(scope="each", parallel=1))  # the first call has ended when the second one begins
        replies = [await say(server, token, "words", "echo/delay=0") for _ in range(3)]
        # two answers of the other model pass; without it, the first answer waits for a person
        assert [status for status, _ in replies] == [200, 200, 504]
        jobs = await server.services.store.jobs.list(JobFilter(limit=10))
        assert [job.model for job in jobs] == ["second", "second", "echo"]
        names = [limit_name("user", user.id, model) for model in (None, "second")]
        counters = await limits.counters(names)
        assert counters[names[1]].day.tokens > 0
        assert counters[names[0]].pending == counters[names[1]].pending == ()


async def test_log_probabilities_are_asked_for_and_taken_out_again(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, log_before_answer=True) as server:
        await server.model("sure", kind="openai", url=fake.at("logprobs"))
        await save(server, "unsure", "sure", rule("signals.logprob_min < -2.0", "hold"))
        token = await server.token()
        for text, stream, status in (("-0.5 -1.5", False, 200), ("-0.5 -1.5", True, 200), ("-0.5 -2.5", False, 504)):
            reply_status, answer = await say(server, token, text, "sure", stream=stream)
            assert reply_status == status, answer
            assert "logprob" not in json.dumps(answer).replace('\\"logprobs\\":null', "").replace(
                '"logprobs": null', ""
            )
            job = await last_job(server)
            assert job.ruling is not None
            assert job.ruling.signals == {"signals.logprob_min": min(map(float, text.split()))}
            assert b'logprob"' not in (job.response or b"")
        status, answer = await say(server, token, "-0.5", "sure", logprobs=True)
        assert answer["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5
        # An upstream that gives none, or refuses, leaves the signal null, and the condition about it fails.
        assert [(await say(server, token, text, "sure"))[0] for text in ("none", "refuse")] == [504, 504]


async def test_a_retry_and_a_rerun_are_judged_by_the_policy_then_and_now(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        token = await server.token()
        await save(server, "one", "echo", rule('answer.text.contains("then")', "hold"))
        assert (await say(server, token, "then"))[0] == 504
        held = await last_job(server)
        await decide(server.services, REVIEWER, held.id, VerdictRequest(verdict="approve"))
        await save(server, "one", "echo", rule('answer.text.contains("now")', "hold"))
        # the earlier version holds it still, although the present one would not
        assert await status_of_retry(server, token, held.id) == "human"
        status, _ = await say(server, token, "other")
        assert status == 200
        passed = await last_job(server)
        await save(server, "one", "echo", rule('answer.text.contains("other")', "hold"))
        assert await status_of_retry(server, token, passed.id) == "human"
        await server.ask("DELETE", "/api/policies/one", await server.token("admin"))
        assert (await say(server, token, "other"))[0] == 200
        assert await status_of_retry(server, token, held.id) == "human"


async def test_a_retry_has_the_votes_the_deadline_and_the_audit_of_the_stricter_version(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True, review_deadline_seconds=None) as server:
        token = await server.token()
        of_then = {"deadline_seconds": 60, "on_deadline": "approve"}
        await save(server, "one", "echo", rule("true", "hold", **of_then))
        assert (await say(server, token, "word"))[0] == 504
        held = await last_job(server)
        await decide(server.services, REVIEWER, held.id, VerdictRequest(verdict="approve"))
        await save(server, "one", "echo", rule("true", "hold", votes=2))
        assert await status_of_retry(server, token, held.id) == "human"
        retried = await last_job(server)
        assert (retried.ruling.version, retried.ruling.votes, retried.review_deadline) == (2, 2, None)  # type: ignore[union-attr]


async def status_of_retry(server: Live, token: str, job_id: str) -> str:
    _, retry = await server.ask("POST", f"/api/jobs/{job_id}/retry", token)
    job = await server.job_when(token, retry["job_id"], lambda job: job["status"] in {"success", "fail", "human"})
    return job["status"]


async def test_a_redo_with_an_edited_request_is_judged_again(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        token = await server.token()
        await save(server, "one", "echo", rule('answer.text == "bad"', "hold"))
        await save(server, "two", "second", rule('answer.text == "worse"', "hold"))
        await server.model("second")
        assert (await say(server, token, "bad"))[0] == 504
        held = await last_job(server)
        for text, model, status in (
            ("worse", "second", "human"),
            ("bad", "second", "human"),
            ("good", "second", "success"),
        ):
            payload = json.dumps(chat(text, model))
            request = VerdictRequest(verdict="redo", edit=Edit(payload=payload))
            await decide(server.services, REVIEWER, held.id, request)
            reply_status = await server.job_when(token, held.id, lambda job: job["status"] != "bot")
            assert reply_status["status"] == status


async def test_a_fallback_is_judged_by_the_policy_of_the_model_that_answers(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        await server.model("backup")
        await server.model("down", kind="openai", url="http://127.0.0.1:9/v1", fallbacks=("backup",), attempts=1)
        token = await server.token()
        assert (await say(server, token, "x", "down"))[0] == 200
        await save(server, "b", "backup", rule("answer.length > 3", "hold"))
        # The answer of a job that nobody looks at must not come from a model under a policy.
        assert (await say(server, token, "x", "down"))[0] in {502, 503}
        await save(server, "d", "down", rule("answer.empty", "hold"))
        assert [(await say(server, token, text, "down"))[0] for text in ("x", "long")] == [200, 504]


async def test_a_cached_answer_leaves_only_under_the_policy_that_let_it_pass(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        token = await server.token()
        await save(server, "one", "echo", rule('answer.text == "bad"', "hold"))
        for expected in ("miss", "hit"):
            assert (await say(server, token, "good", temperature=0))[0] == 200
            assert (await last_job(server)).cache == expected
        await save(server, "one", "echo", rule('answer.text == "good"', "hold"))
        assert (await say(server, token, "good", temperature=0))[0] == 504
        await save(server, "one", "echo", rule('request.user == "x"', "hold"))
        for _ in range(2):  # what depends on the caller is not shared
            assert (await say(server, token, "good", temperature=0))[0] == 200
            assert (await last_job(server)).cache == "bypass"


async def test_the_steps_of_a_run_and_the_run_are_judged(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        token = await server.token()
        for path, body in (
            ("prompts", {"name": "pp", "model": "echo", "body": "{x}"}),
            ("pipelines", {"name": "pl", "body": "pp(x)"}),
        ):
            status, _ = await server.ask("POST", f"/api/{path}", token, json=body)
            assert status == 201
        await save(server, "of-run", "pl", rule('answer.text.contains("run")', "hold"))
        assert [(await say(server, token, text, "pl"))[0] for text in ("good", "a run")] == [200, 504]
        await save(server, "of-step", "pp", rule('answer.text.contains("step")', "hold"))
        assert [(await say(server, token, text, "pl"))[0] for text in ("good", "a step")] == [200, 504]
        held = [job for job in await server.services.store.jobs.list(JobFilter(status="human")) if job.parent_id]
        assert [job.policy.name for job in held] == ["of-step"]


async def test_the_schema_of_a_request_is_a_signal(tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["a"]}
    form: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}
    async with live(tmp_path, log_before_answer=True) as server:
        await save(server, "s", "echo", rule("signals.schema_ok == false", "hold"))
        token = await server.token()
        assert [(await say(server, token, text, **form))[0] for text in ('{"a":1}', "{}")] == [200, 504]
        assert (await say(server, token, "{}"))[0] == 200


async def test_a_judge_is_asked_only_when_a_rule_needs_it_and_its_call_is_a_job_of_the_admin(tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        admin = await server.token("admin")
        await server.ask(
            "POST", "/api/prompts", admin, json={"name": "score", "model": "echo", "body": '{"score": {answer}}'}
        )
        await save(
            server,
            "j",
            "echo",
            rule('answer.text == "fine"', "pass"),
            rule("signals.judge < 0.5", "hold"),
            judge="score",
        )
        token = await server.token()
        before = len(await server.services.store.jobs.list(JobFilter()))
        assert (await say(server, token, "fine"))[0] == 200
        assert len(await server.services.store.jobs.list(JobFilter())) == before + 1
        assert [(await say(server, token, text))[0] for text in ("0.75", "0.25")] == [200, 504]
        every = await server.services.store.jobs.list(JobFilter())
        consulted = [each for each in every if each.door == "policy"]
        assert [each.status for each in consulted] == ["success", "success"]
        [held] = [each for each in every if each.status == "human"]
        assert all(each.user_id != held.user_id and not each.policy.may_hold for each in consulted)
        assert held.ruling is not None
        assert held.ruling.signals["signals.judge"] == 0.25
        # The caller, whose answer is held, does not see it in the job of the judge.
        _, listed = await server.ask("GET", "/api/jobs", token)
        assert "0.25" not in json.dumps([each for each in listed["data"] if each["job_id"] != held.id])
        # A judge that fails is a missing signal: the condition about it fails, and holds.
        await save(server, "j", "echo", rule("signals.judge < 0.5", "hold"), judge="nosuch")
        assert (await say(server, token, "0.75"))[0] == 504


async def test_a_caller_who_leaves_while_a_judge_is_asked_leaves_no_open_job(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("slow", kind="openai", url=fake.at("hang-before-headers"))
        await save(server, "j", "echo", rule("signals.judge < 0.5", "hold"), judge="slow")
        caller = asyncio.ensure_future(say(server, await server.token(), "hello"))
        await fake.until_stuck()
        caller.cancel()

        async def ended() -> list[Job] | None:
            jobs = await server.services.store.jobs.list(JobFilter())
            return jobs if len(jobs) == 2 and all(job.is_terminal for job in jobs) else None

        jobs = await until(ended)
        assert {job.door: job.error and job.error.code for job in jobs} == {
            "openai": "cancelled",
            "policy": "interrupted",
        }
        assert server.services.runtime.leases.number == 0


@pytest.mark.parametrize("lane", ["now", "later"])
async def test_an_answer_is_held_if_the_store_fails_while_its_budget_is_read(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = {"answers": 10_000, "share": 0.02, "audit_rate": 0.5}
    async with live(tmp_path, log_before_answer=True) as server:
        await save(server, "b", "echo", budget=budget)
        monkeypatch.setattr(server.services.store.budgets, "take_passes", fail_to_store)
        token = await server.token()
        if lane == "now":
            assert (await say(server, token, "hello"))[0] == 504
        else:
            await server.ask("POST", "/enqueue", token, json=chat("hello", "echo"))

        async def settled() -> Job | None:
            job = await last_job(server)
            return None if job.status == "bot" else job

        job = await until(settled)
        assert (job.status, job.ruling and job.ruling.coin) == ("human", None)
        assert server.services.runtime.leases.number == 0


async def fail_to_store(*_: object, **__: object) -> None:
    raise Overloaded("The database does not answer.")


async def test_a_moderation_model_is_a_signal(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path, log_before_answer=True) as server:
        await server.model("moderator", kind="openai", url=fake.at("moderate"))
        await save(server, "m", "echo", rule("signals.moderation.flagged", "hold"), moderation="moderator")
        token = await server.token()
        assert [(await say(server, token, text))[0] for text in ("kind words", "violence")] == [200, 504]


class Guardrail(WebhookReceiver):
    """A webhook whose answer counts."""

    verdict: Any = None

    async def reply(self, request: RecordedRequest) -> Reply:
        return json_reply(self.verdict)


async def test_a_webhook_is_a_signal(tmp_path: Path) -> None:
    settings = {"webhook_secret": SECRET, "webhook_allow": ["127.0.0.1"]}
    async with Guardrail() as receiver, live(tmp_path, log_before_answer=True, **settings) as server:
        receiver.verdict = {"score": 0.9}
        hook = {"url": receiver.url, "timeout_seconds": 5}
        await save(server, "w", "echo", rule("signals.webhook.score < 0.5", "hold"), webhook=hook)
        token = await server.token()
        assert (await say(server, token, "hello"))[0] == 200
        receiver.verdict = {"score": 0.1}
        assert (await say(server, token, "hello"))[0] == 504
        receiver.verdict = {"other": 1}
        assert (await say(server, token, "hello"))[0] == 504


async def test_a_job_whose_first_write_fails_does_not_end_with_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        await save(server, "one", "echo", rule("true", "hold"))
        token = await server.token()
        store = server.services.store.jobs
        insert = type(store).insert

        async def fail(self: Any, job: Job, **more: Any) -> Job:
            await insert(self, job, **more)
            raise Overloaded("The commit was lost.")

        monkeypatch.setattr(type(store), "insert", fail)
        status, answer = await say(server, token, "a held text")
        assert (status, "a held text" in str(answer)) == (503, False)
        monkeypatch.undo()
        ended = await server.job_when(token, (await last_job(server)).id, lambda job: job["status"] != "bot")
        assert ended["status"] == "fail"
        assert not list(await store.list(JobFilter(status="success")))
