"""The jobs door (`/enqueue`, `/job`, `/reviewJob`) and the native door (`/api/jobs`)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from signoff.core.access import Caller
from signoff.work.jobs import query
from signoff.work.reviews import history
from signoff.work.reviews.desk import undo_verdict
from support.live_server import Live, chat, live, until, words

pytestmark = pytest.mark.anyio


async def enqueue_held_job(server: Live, token: str, payload: Any = None) -> str:
    """Enqueue a job, wait until it is held, and return its id."""
    body = {"input": "What is 2 + 2?", "model": "echo"} if payload is None else payload
    status, response = await server.ask("POST", "/enqueue", token, json=body)
    assert (status, response["status"]) == (200, "success")
    reviewer = await server.token("reviewer")
    await server.job_when(reviewer, response["job_id"], lambda job: job["status"] == "human")
    return response["job_id"]


async def test_a_held_answer_is_hidden_until_it_is_approved(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        # given a job that is held
        user, reviewer = await server.token(), await server.token("reviewer")
        job_id = await enqueue_held_job(server, user)
        # then no route shows its owner the answer
        for path in (f"/job?id={job_id}", f"/api/jobs/{job_id}", f"/api/jobs/{job_id}?wait=0.01"):
            _, job = await server.ask("GET", path, user)
            assert (job["status"], job["response"]) == ("human", None)
        for path in ("/jobs", "/jobs?status=Human", "/api/jobs", f"/api/jobs/{job_id}/events"):
            _, listed = await server.ask("GET", path, user)
            assert "completion" not in str(listed)
        # but a reviewer sees it
        _, job = await server.ask("GET", f"/job?id={job_id}", reviewer)
        assert words(job["response"]) == "What is 2 + 2?"
        # when it is approved, its owner sees the answer too
        await review(server, reviewer, job_id, "Success")
        _, job = await server.ask("GET", f"/job?id={job_id}", user)
        assert (job["status"], words(job["response"])) == ("success", "What is 2 + 2?")


@pytest.mark.parametrize("edited", [{"choices": [{"message": {"content": "4"}}]}, 4, ["4"], {"a": None}])
async def test_the_caller_gets_the_edited_response(edited: Any, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user, reviewer = await server.token(), await server.token("reviewer")
        job_id = await enqueue_held_job(server, user)
        await review(server, reviewer, job_id, "success", response=edited)
        _, job = await server.ask("GET", f"/job?id={job_id}", user)
        assert (job["status"], job["response"]) == ("success", edited)


async def test_an_edited_text_has_the_envelope_of_the_response_before(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user, reviewer = await server.token(), await server.token("reviewer")
        job_id = await enqueue_held_job(server, user)
        _, held = await server.ask("GET", f"/job?id={job_id}", reviewer)
        await review(server, reviewer, job_id, "success", response="4")
        for path in (f"/job?id={job_id}", f"/api/jobs/{job_id}"):
            _, job = await server.ask("GET", path, user)
            assert words(job["response"]) == "4"
            assert job["response"] | {"choices": []} == held["response"] | {"choices": []}


async def test_a_rejected_job_fails_with_its_reason(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user, reviewer = await server.token(), await server.token("reviewer")
        job_id = await enqueue_held_job(server, user)
        await review(server, reviewer, job_id, "fail", reason="wrong")
        _, job = await server.ask("GET", f"/job?id={job_id}", user)
        assert job["status"] == "fail"
        assert (job["error"]["code"], job["error"]["message"]) == ("rejected", "wrong")


async def test_a_job_that_is_sent_back_runs_again_with_the_edited_payload(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user, reviewer = await server.token(), await server.token("reviewer")
        job_id = await enqueue_held_job(server, user)
        await review(server, reviewer, job_id, "bot", payload={"input": "What is 3 + 3?", "model": "echo"})
        job = await server.job_when(reviewer, job_id, lambda job: job["round"] == 2)
        assert words(job["response"]) == "What is 3 + 3?"
        assert job["payload"]["input"] == "What is 3 + 3?"


async def test_the_status_human_stores_a_draft_and_changes_nothing_else(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user, reviewer = await server.token(), await server.token("reviewer")
        job_id = await enqueue_held_job(server, user)
        await review(server, reviewer, job_id, "human", response={"draft": 1})
        _, response = await server.ask("GET", f"/job?id={job_id}", reviewer)
        assert (response["status"], words(response["response"])) == ("human", "What is 2 + 2?")
        job = await server.services.store.jobs.get(job_id)
        assert job is not None
        assert job.draft is not None
        assert job.draft.response in {'{"draft": 1}', '{"draft":1}'}


async def test_the_first_verdict_wins_and_later_reviewers_learn_whose_it_is(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        job_id = await enqueue_held_job(server, await server.token())
        tokens = [await server.token("reviewer", f"r{number}@example.com") for number in range(8)]
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(server.ask("POST", "/reviewJob", token, json={"id": job_id, "status": "success"}))
                for token in tokens
            ]
        statuses = sorted(call.result()[0] for call in calls)
        assert statuses == [200] + [409] * 7
        conflict = next(call.result()[1] for call in calls if call.result()[0] == 409)
        assert re.search(r"r\d@example.com", conflict["message"])


async def test_a_verdict_on_an_answer_that_was_replaced_meanwhile_is_refused(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        job_id = await enqueue_held_job(server, token)
        await server.ask("POST", "/reviewJob", token, json={"id": job_id, "status": "bot", "round": 1})
        await server.job_when(token, job_id, lambda job: (job["status"], job["round"]) == ("human", 2))
        verdict = {"id": job_id, "status": "success", "round": 1}
        assert (await server.ask("POST", "/reviewJob", token, json=verdict))[0] == 409
        assert (await server.ask("POST", "/reviewJob", token, json=verdict | {"round": 2}))[0] == 200


async def test_only_reviewers_review(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user = await server.token()
        job_id = await enqueue_held_job(server, user)
        status, _ = await server.ask("POST", "/reviewJob", user, json={"id": job_id, "status": "success"})
        assert status == 403


async def test_another_users_job_does_not_exist(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        job_id = await enqueue_held_job(server, await server.token())
        other = await server.token("user", "other@example.com")
        for method, path in (
            ("GET", f"/job?id={job_id}"),
            ("GET", f"/api/jobs/{job_id}"),
            ("GET", f"/api/jobs/{job_id}/events"),
            ("DELETE", f"/api/jobs/{job_id}"),
        ):
            status, _ = await server.ask(method, path, other)
            assert status == 404
        for path in ("/jobs", "/api/jobs"):
            _, listed = await server.ask("GET", path, other)
            assert job_id not in str(listed)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"{}", 400),
        (b'{"id": "nobody", "status": "success"}', 404),
        (b'{"id": "nobody", "status": "maybe"}', 400),
    ],
)
async def test_an_invalid_review_is_refused(body: bytes, status: int, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        response_status, response = await server.ask("POST", "/reviewJob", await server.token("reviewer"), data=body)
        assert (response_status, response["status"]) == (status, "error")


@pytest.mark.parametrize(
    "payload", ['"hello"', "7", "null", "[1, 2]", "true", "{}", '{"input": "hi"}', '{"prompt": "hi"}']
)
async def test_any_json_value_is_a_payload(payload: str, tmp_path: Path) -> None:
    async with live(tmp_path, enqueue_review="never") as server:
        await server.model("default-echo", default=True)
        token = await server.token()
        _, response = await server.ask("POST", "/enqueue", token, data=payload.encode())
        job = await server.job_when(token, response["job_id"], lambda job: job["status"] in {"success", "fail"})
        assert (job["status"], job["error"]) == ("success", None)


async def test_a_body_is_json_whatever_its_content_type_says(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8", "x"):
            body = b'{"input": "hi", "model": "echo"}'
            status, _ = await server.ask("POST", "/enqueue", token, data=body, headers={"content-type": kind})
            assert status == 200


async def test_jobs_are_listed_oldest_first_in_pages(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        ids = [await enqueue_held_job(server, token) for _ in range(3)]
        headers = {"authorization": f"Bearer {token}"}
        async with server.http.get(server.url + "/jobs?offset=1&limit=1&status=HUMAN", headers=headers) as response:
            assert [job["job_id"] for job in await response.json()] == [ids[1]]
            assert response.headers["x-total-count"] == "3"
            assert response.headers["x-total-is-capped"] == "false"
        _, jobs = await server.ask("GET", f"/jobs?after={ids[0]}", token)
        assert [job["job_id"] for job in jobs] == ids[1:]
        _, page = await server.ask("GET", "/api/jobs?limit=2", token)
        assert [job["job_id"] for job in page["data"]] == [ids[2], ids[1]]
        assert "total" not in page
        _, page = await server.ask("GET", "/api/jobs?limit=2&total=1", token)
        assert (page["total"], page["total_is_capped"]) == (3, False)
        _, page = await server.ask("GET", f"/api/jobs?limit=2&after={page['next']}", token)
        assert [job["job_id"] for job in page["data"]] == [ids[0]]
        for invalid in ("offset=-1", "offset=10001", "limit=-1", "limit=x", "status=maybe"):
            status, _ = await server.ask("GET", f"/jobs?{invalid}", token)
            assert status == 400


async def test_a_count_ends_at_its_maximum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "MAX_COUNT", 2)
    async with live(tmp_path) as server:
        token = await server.token()
        for _ in range(3):
            await enqueue_held_job(server, token)
        _, page = await server.ask("GET", "/api/jobs?total=1", token)
        assert (page["total"], page["total_is_capped"]) == (2, True)
        headers = {"authorization": f"Bearer {token}"}
        async with server.http.get(server.url + "/jobs", headers=headers) as response:
            assert response.headers["x-total-count"] == "2"
            assert response.headers["x-total-is-capped"] == "true"
        monkeypatch.setattr(history, "MAX_COUNT", 2)
        headers = {"authorization": f"Bearer {await server.token('reviewer')}"}
        async with server.http.get(f"{server.url}/dashboard/review", headers=headers) as response:
            assert ">2+</span>" in await response.text()


async def test_times_are_rfc_3339_with_microseconds(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        job_id = await enqueue_held_job(server, token)
        _, job = await server.ask("GET", f"/job?id={job_id}", token)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", job["created_at"])


async def test_a_native_job_has_a_location_that_can_be_waited_on(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        body = {"body": chat("hello"), "target": "echo", "metadata": {"mine": [1, None]}, "priority": 9}
        headers = {"authorization": f"Bearer {token}"}
        async with server.http.post(server.url + "/api/jobs", json=body, headers=headers) as response:
            assert response.status == 202
            assert response.headers["retry-after"]
            url = response.headers["location"]
        _, job = await server.ask("GET", f"{url}?wait=10", token)
        assert (job["status"], words(job["response"]), job["metadata"]) == ("success", "hello", {"mine": [1, None]})
        _, events = await server.ask("GET", f"{url}/events", token)
        assert [event["verb"] for event in events["data"]] == ["submit", "claim", "succeed"]


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b'{"body": {}, "priority": 10}', b'{"body": {}, "nonsense": 1}', b'{"body": {}, "due_at": "soon"}'],
)
async def test_an_invalid_native_job_is_a_problem_document(body: bytes, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        headers = {"authorization": f"Bearer {await server.token()}"}
        async with server.http.post(server.url + "/api/jobs", data=body, headers=headers) as response:
            assert response.status == 400
            assert response.content_type == "application/problem+json"
            assert (await response.json())["code"]


async def test_one_idempotency_key_is_one_job(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, headers = await server.token(), {"idempotency-key": "k"}
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(
                    server.ask("POST", "/api/jobs", token, json={"body": chat("hi")}, headers=dict(headers))
                )
                for _ in range(20)
            ]
        assert len({call.result()[1]["job_id"] for call in calls}) == 1
        status, response = await server.ask(
            "POST", "/api/jobs", token, json={"body": chat("ho")}, headers=dict(headers)
        )
        assert (status, response["code"]) == (422, "idempotency_key_reused")


async def test_a_running_job_is_stopped_when_it_is_cancelled(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        _, job = await server.ask("POST", "/api/jobs", token, json={"body": chat("hi", "echo/hang")})
        await until(lambda: is_leased(server, job["job_id"]))
        status, cancelled = await server.ask("DELETE", f"/api/jobs/{job['job_id']}", token)
        assert (status, cancelled["status"], cancelled["error"]["code"]) == (200, "fail", "cancelled")
        await until(lambda: is_idle(server))
        status, _ = await server.ask("DELETE", f"/api/jobs/{job['job_id']}", token)
        assert status == 409


async def test_a_failing_model_is_retried_and_its_last_error_is_stored(tmp_path: Path) -> None:
    async with live(tmp_path, later_attempts=3) as server:
        token = await server.token()
        _, response = await server.ask("POST", "/api/jobs", token, json={"body": chat("hi", "echo/status=503")})
        _, job = await server.ask("GET", f"/api/jobs/{response['job_id']}?wait=20", token)
        assert (job["status"], job["attempt"], job["error"]["status"]) == ("fail", 3, 503)
        _, response = await server.ask("POST", "/api/jobs", token, json={"body": chat("hi", "echo/status=400")})
        _, job = await server.ask("GET", f"/api/jobs/{response['job_id']}?wait=20", token)
        assert (job["status"], job["attempt"], job["error"]["status"]) == ("fail", 1, 400)


async def test_a_verdict_can_be_undone_until_it_takes_effect(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=3600) as server:
        user, reviewer = await server.token(), await server.token("reviewer")
        job_id = await enqueue_held_job(server, user)
        await review(server, reviewer, job_id, "success")
        _, job = await server.ask("GET", f"/job?id={job_id}", user)
        assert (job["status"], job["response"]) == ("human", None)
        rita = Caller(user_id=1, token_id=1, role="reviewer", email="reviewer@example.com")
        assert (await undo_verdict(server.services, rita, job_id)).round == 2
        await review(server, reviewer, job_id, "fail", reason="changed my mind")


async def review(server: Live, token: str, job_id: str, status: str, **more: Any) -> None:
    response_status, response = await server.ask(
        "POST", "/reviewJob", token, json={"id": job_id, "status": status, **more}
    )
    assert (response_status, response) == (200, {"status": "success"})


async def is_leased(server: Live, job_id: str) -> bool | None:
    job = await server.services.store.jobs.get(job_id)
    return bool(job and job.lease) or None


async def is_idle(server: Live) -> bool | None:
    """Return True if the worker holds no lease, else None."""
    return not server.services.runtime.leases._held or None


async def test_events_of_a_job_are_streamed_live_and_resume_after_the_last_event_id(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        body = {"body": chat("hello", "echo/delay=0.3")}
        _, job = await server.ask("POST", "/api/jobs", token, json=body)
        path, headers = f"/api/jobs/{job['job_id']}/events", {"accept": "text/event-stream"}
        _, text = await server.ask("GET", path, token, headers=dict(headers))
        assert re.findall(r"^event: (\w+)$", text, re.MULTILINE) == ["submit", "claim", "succeed"]
        assert re.findall(r"^id: (\d+)$", text, re.MULTILINE) == ["1", "2", "3"]
        _, text = await server.ask("GET", path, token, headers=headers | {"last-event-id": "2"})
        assert re.findall(r"^id: (\d+)$", text, re.MULTILINE) == ["3"]
        assert json.loads(text.partition("data: ")[2])["is_final"]
        status, _ = await server.ask("GET", "/api/jobs/nobody/events", token, headers=dict(headers))
        assert status == 404


@pytest.mark.parametrize("how", ["succeed", "cancel", "call"])
async def test_an_event_stream_ends_with_its_final_event_and_then_with_204(how: str, tmp_path: Path) -> None:
    async with live(tmp_path, log_before_answer=True) as server:
        token = await server.token()
        if how == "call":
            assert (await server.ask("POST", "/v1/chat/completions", token, json=chat("hello")))[0] == 200
            _, page = await server.ask("GET", "/api/jobs", token)
            job_id = page["data"][0]["job_id"]
        else:
            body = {"body": chat("hello", "echo" if how == "succeed" else "echo/hang")}
            job_id = (await server.ask("POST", "/api/jobs", token, json=body))[1]["job_id"]
        if how == "cancel":
            assert (await server.ask("DELETE", f"/api/jobs/{job_id}", token))[0] == 200
        path, headers = f"/api/jobs/{job_id}/events", {"accept": "text/event-stream"}
        _, text = await server.ask("GET", path, token, headers=dict(headers))
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        assert [event["is_final"] for event in events] == [False] * (len(events) - 1) + [True]
        assert (await server.ask("GET", path, token))[1]["data"] == events
        for last_id in (events[-1]["seq"], 999):
            again = await server.ask("GET", path, token, headers=headers | {"last-event-id": str(last_id)})
            assert again == (204, "")


async def test_a_retry_of_an_ended_job_is_a_new_job(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        _, old = await server.ask("POST", "/api/jobs", token, json={"body": chat("hi", "echo/status=400")})
        await server.ask("GET", f"/api/jobs/{old['job_id']}?wait=10", token)
        status, new = await server.ask("POST", f"/api/jobs/{old['job_id']}/retry", token)
        assert (status, new["retry_of"]) == (202, old["job_id"])
        assert new["job_id"] != old["job_id"]
        _, running = await server.ask("POST", "/api/jobs", token, json={"body": chat("hi", "echo/hang")})
        assert (await server.ask("POST", f"/api/jobs/{running['job_id']}/retry", token))[0] == 409
        other = await server.token("user", "other@example.com")
        assert (await server.ask("POST", f"/api/jobs/{old['job_id']}/retry", other))[0] == 404


async def test_a_repeated_idempotency_key_does_not_show_a_held_answer(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        # given a job that is held
        await server.model("careful", review="always")
        token, reviewer, headers = await server.token(), await server.token("reviewer"), {"idempotency-key": "k"}
        body = {"body": {"messages": chat("secret")["messages"]}, "target": "careful"}
        _, job = await server.ask("POST", "/api/jobs", token, json=body, headers=dict(headers))
        await server.job_when(reviewer, job["job_id"], lambda job: job["status"] == "human")
        # when its owner sends the same request again
        _, again = await server.ask("POST", "/api/jobs", token, json=body, headers=dict(headers))
        # then the response is the same job, still without its answer
        assert (again["job_id"], again["status"], again["response"]) == (job["job_id"], "human", None)
        # and the same key with another target is refused
        status, _ = await server.ask("POST", "/api/jobs", token, json=body | {"target": "echo"}, headers=dict(headers))
        assert status == 422


@pytest.mark.parametrize("path", ["/admin", "/v1/../x", "/v1", "//v1//", "http://evil/v1/x", "/v1/x\n"])
async def test_a_path_outside_the_api_is_refused(path: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        body = {"body": chat("hello"), "target": "echo", "path": path}
        status, _ = await server.ask("POST", "/api/jobs", await server.token(), json=body)
        assert status == 400


async def test_events_tell_a_user_no_address_of_a_reviewer_or_a_process(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=3600) as server:
        user, reviewer, admin = await server.token(), await server.token("reviewer"), await server.token("admin")
        job_id = await enqueue_held_job(server, user)
        await review(server, reviewer, job_id, "success")
        path = f"/api/jobs/{job_id}/events"
        actors = [event["actor"] for event in (await server.ask("GET", path, user))[1]["data"]]
        assert actors == ["user:user@example.com", "worker", "worker", "reviewer"]
        actors = [event["actor"] for event in (await server.ask("GET", path, admin))[1]["data"]]
        assert actors[1].startswith("worker:")
        assert actors[3] == "user:reviewer@example.com"
        # neither does the stream of the events, nor the message about a cancellation
        status, cancelled = await server.ask("DELETE", f"/api/jobs/{job_id}", admin)
        assert (status, cancelled["error"]["message"]) == (200, "Cancelled by an admin.")
        headers = {"accept": "text/event-stream"}
        _, streamed = await server.ask("GET", path, user, headers=headers)
        assert streamed.count("event: ") == 5
        for secret in ("reviewer@", "admin@", "worker:"):
            assert secret not in streamed


async def test_a_late_cancellation_does_not_tell_its_caller_who_decided(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user, reviewer = await server.token(), await server.token("reviewer")
        job_id = await enqueue_held_job(server, user)
        await review(server, reviewer, job_id, "success")
        status, refusal = await server.ask("DELETE", f"/api/jobs/{job_id}", user)
        assert (status, refusal["detail"]) == (409, "The job is success; `cancel` is not possible now.")


async def test_lists_of_large_jobs_come_in_pages_of_some_megabytes(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, size_bytes = await server.token(), 900_000
        body = {"body": chat("x" * size_bytes), "target": "echo", "due_at": "2100-01-01T00:00:00Z"}
        ids = [(await server.ask("POST", "/api/jobs", token, json=body))[1]["job_id"] for _ in range(12)]
        # by the cursor of the native door, newest first
        listed, cursor = list[str](), ""
        while cursor is not None:
            status, page = await server.ask("GET", f"/api/jobs?limit=1000&after={cursor or '~'}", token)
            assert status == 200
            assert 1 <= len(page["data"]) <= 10
            listed, cursor = [*listed, *(job["job_id"] for job in page["data"])], page["next"]
        assert listed == ids[::-1]
        # by the link of the other door, oldest first
        listed, path = list[str](), "/jobs?limit=1000&status=bot"
        while path:
            async with server.http.get(server.url + path, headers={"authorization": f"Bearer {token}"}) as response:
                page = await response.json()
                path = str(response.links["next"]["url"].relative()) if "next" in response.links else ""
            assert 1 <= len(page) <= 10
            listed += [job["job_id"] for job in page]
        assert listed == ids


async def test_a_list_without_large_jobs_is_one_page(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await server.ask("POST", "/api/jobs", token, json={"body": chat("hi"), "target": "echo"})
        assert (await server.ask("GET", "/api/jobs", token))[1]["next"] is None
        async with server.http.get(server.url + "/jobs", headers={"authorization": f"Bearer {token}"}) as response:
            assert len(await response.json()) == 1
            assert "link" not in response.headers


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"body": {"model": "echo"}}, (202, "echo")),
        ({"body": {"model": "echo"}, "target": "echo"}, (202, "echo")),
        ({"body": {"model": "echo"}, "target": None}, (202, "echo")),
        ({"body": {"model": None}, "target": "echo"}, (202, "echo")),
        ({"body": {"model": None}}, (202, "mine")),
        ({"body": {"model": 5}}, (202, "mine")),
        ({"body": {}}, (202, "mine")),
        ({"body": {"model": "echo", "input": "x"}, "path": "/v1/responses"}, (202, "echo")),
        ({"body": {"model": "echo", "x": 1}, "path": "/predict"}, (202, "echo")),
        ({"body": {"model": "sedan"}, "path": "/predict", "target": "echo"}, (202, "echo")),
        ({"body": {"model": "echo"}, "target": "mine"}, (400, "bad_request")),
        ({"body": {"model": "nowhere"}}, (404, "model_not_found")),
    ],
    ids=str,
)
async def test_the_model_of_the_body_counts(job: dict[str, Any], expected: tuple[int, str], jobs_server: Live) -> None:
    if job["body"].keys() <= {"model"}:
        job = job | {"body": {"messages": chat("x")["messages"]} | job["body"]}
    token = await jobs_server.token()
    for path in ("/api/jobs", "/api/jobs?by=framework"):  # the two ways of this route
        status, reply = await jobs_server.ask("POST", path, token, json=job)
        assert (status, reply.get("model" if status == 202 else "code")) == expected


@pytest.fixture(scope="module")
async def jobs_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """Yield a server that several tests share, whose default model is `mine`."""
    async with live(tmp_path_factory.mktemp("jobs")) as server:
        await server.model("mine", default=True)
        yield server
