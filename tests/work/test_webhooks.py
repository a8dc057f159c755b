"""Webhooks: at least once, under one id, signed, after the verdict and never after a cancel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from fakes.http_server import RecordedRequest
from fakes.webhook_receiver import OTHER_SECRET, SECRET, WebhookReceiver, hang, message_id
from signoff.settings import BadSettings, Settings, load
from signoff.stores import schema
from support.live_server import Live, chat, live, until, words
from support.stores import execute, opened

pytestmark = pytest.mark.anyio

LOCAL = {"webhook_allow": ["127.0.0.0/8"], "webhook_waits_seconds": [0.0] * 30}


@contextlib.asynccontextmanager
async def hooked(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Live, WebhookReceiver]]:
    """A server that may send to this machine, and a receiver there."""
    async with WebhookReceiver() as receiver, live(tmp_path, **(LOCAL | settings)) as server:
        yield server, receiver


async def submit(
    server: Live, token: str, url: str, *, secret: str | None = SECRET, target: str = "echo", **more: Any
) -> str:
    """The id of a job whose end is told to `url`."""
    deliver = {"url": url} | ({} if secret is None else {"secret": secret})
    asked = {"body": chat("hello"), "target": target, "deliver": deliver} | more
    status, job = await server.ask("POST", "/api/jobs", token, json=asked)
    assert status == 202, job
    return job["job_id"]


async def deliveries(server: Live, token: str, job_id: str) -> list[dict[str, Any]]:
    status, told = await server.ask("GET", f"/api/jobs/{job_id}/deliveries", token)
    assert status == 200
    return told["data"]


async def delivery_when(server: Live, token: str, job_id: str, **is_so: Any) -> dict[str, Any]:
    """The job's delivery, as soon as it is as told."""

    async def look() -> dict[str, Any] | None:
        found = await deliveries(server, token, job_id)
        return found[0] if found and is_so.items() <= found[0].items() else None

    return await until(look)


# What comes


async def test_the_end_of_a_job_is_told_and_two_libraries_take_it(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token = await server.token()
        job_id = await submit(server, token, receiver.url, metadata={"mine": 1})

        [got] = await receiver.received()
        told = Webhook(SECRET).verify(got.body, got.headers)
        assert (told["type"], told["data"]["job_id"], told["data"]["metadata"]) == (
            "job.succeeded",
            job_id,
            {"mine": 1},
        )
        assert words(told["data"]["response"]) == "hello"
        _, job = await server.ask("GET", f"/api/jobs/{job_id}", token)
        assert (told["data"], told["timestamp"]) == (job, job["updated_at"])
        with openai.OpenAI(api_key="none") as client:
            unwrapped = client.webhooks.unwrap(got.body, got.headers, secret=SECRET)
        assert unwrapped.type == "job.succeeded"
        assert got.path == "/hook?token=t0ken"
        assert got.headers["content-type"] == "application/json"
        done = await delivery_when(server, token, job_id, state="done")
        assert (done["id"], done["attempts"], done["status"], done["error"]) == (message_id(got), 1, 200, None)


async def test_a_failed_job_is_told_as_failed(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        await submit(server, await server.token(), receiver.url, target="echo/status=400")
        [got] = await receiver.received()
        told = Webhook(SECRET).verify(got.body, got.headers)
        assert (told["type"], told["data"]["status"], told["data"]["error"]["status"]) == ("job.failed", "fail", 400)


async def test_the_deployments_own_secrets_both_sign_while_one_replaces_the_other(tmp_path: Path) -> None:
    async with hooked(tmp_path, webhook_secret=f"{SECRET} {OTHER_SECRET}") as (server, receiver):
        await submit(server, await server.token(), receiver.url, secret=None)
        [got] = await receiver.received()
        assert len(got.headers["webhook-signature"].split()) == 2
        for secret in (SECRET, OTHER_SECRET):
            Webhook(secret).verify(got.body, got.headers)


async def test_a_jobs_own_secret_signs_alone(tmp_path: Path) -> None:
    async with hooked(tmp_path, webhook_secret=OTHER_SECRET) as (server, receiver):
        await submit(server, await server.token(), receiver.url)
        [got] = await receiver.received()
        Webhook(SECRET).verify(got.body, got.headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(OTHER_SECRET).verify(got.body, got.headers)


# When it comes


async def test_a_held_answer_is_told_after_its_verdict_and_as_edited(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        await server.model("careful", review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        job_id = await submit(server, token, receiver.url, target="careful")
        await server.job_when(token, job_id, lambda job: job["status"] == "human")
        assert (await deliveries(server, token, job_id), receiver.requests) == ([], [])

        await server.ask(
            "POST", "/reviewJob", reviewer, json={"id": job_id, "status": "success", "response": {"better": True}}
        )

        [got] = await receiver.received()
        told = Webhook(SECRET).verify(got.body, got.headers)
        assert (told["type"], told["data"]["response"]) == ("job.succeeded", {"better": True})


async def test_a_rejected_answer_is_told_as_failed_and_is_not_in_it(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        await server.model("careful", review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        job_id = await submit(server, token, receiver.url, target="careful")
        await server.job_when(token, job_id, lambda job: job["status"] == "human")

        await server.ask("POST", "/reviewJob", reviewer, json={"id": job_id, "status": "fail", "reason": "wrong"})

        [got] = await receiver.received()
        told = Webhook(SECRET).verify(got.body, got.headers)
        assert (told["type"], told["data"]["error"]["code"]) == ("job.failed", "rejected")
        assert told["data"]["response"] is None
        for path in (f"/api/jobs/{job_id}", f"/job?id={job_id}"):
            assert (await server.ask("GET", path, token))[1]["response"] is None, "what was refused stays unseen"
            assert words((await server.ask("GET", path, reviewer))[1]["response"]) == "hello"


@pytest.mark.parametrize("target", ["careful", "echo/hang"])
async def test_nothing_is_told_of_a_cancelled_job(target: str, tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        await server.model("careful", review="always")
        token = await server.token()
        job_id = await submit(server, token, receiver.url, target=target)
        if target == "careful":
            await server.job_when(token, job_id, lambda job: job["status"] == "human")
        status, job = await server.ask("DELETE", f"/api/jobs/{job_id}", token)
        assert (status, job["response"]) == (200, None), "what was held stays unseen"

        other = await submit(server, token, receiver.url)
        await delivery_when(server, token, other, state="done")
        assert [json.loads(got.body)["data"]["job_id"] for got in receiver.requests] == [other]
        assert await deliveries(server, token, job_id) == []


# When it does not arrive


async def test_a_receiver_that_is_down_for_three_tries_gets_it_under_the_same_id(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token = await server.token()
        receiver.answers = [503, "cut", 429]
        job_id = await submit(server, token, receiver.url)
        tries = await receiver.received(4)
        assert len({message_id(got) for got in tries}) == 1
        assert len({got.body for got in tries}) == 1
        for got in tries:
            Webhook(SECRET).verify(got.body, got.headers)
        done = await delivery_when(server, token, job_id, state="done")
        assert (done["attempts"], len(receiver.requests)) == (4, 4)


async def test_a_receiver_that_comes_up_late_gets_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with live(tmp_path, **(LOCAL | {"webhook_waits_seconds": [0.0] * 1000})) as server:
        token = await server.token()
        job_id = await submit(server, token, f"http://127.0.0.1:{port}/")

        async def tried() -> dict[str, Any] | None:
            found = await deliveries(server, token, job_id)
            return found[0] if found and found[0]["attempts"] >= 3 else None

        assert "refused" in (await until(tried))["error"]
        async with WebhookReceiver(port=port) as receiver:
            [got] = await receiver.received()
            assert (await delivery_when(server, token, job_id, state="done"))["id"] == message_id(got)


async def test_what_is_never_taken_is_given_up_loudly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with hooked(tmp_path, webhook_waits_seconds=[0, 0]) as (server, receiver):
        token = await server.token()
        receiver.answers = [500] * 10
        job_id = await submit(server, token, receiver.url)
        given_up = await delivery_when(server, token, job_id, state="failed")
        assert (given_up["attempts"], given_up["status"], len(receiver.requests)) == (3, 500, 3)
        assert "Given up after 3 attempts" in given_up["error"]
        assert [one.id for one in await server.services.store.deliveries.failed(10)] == [given_up["id"]]
    logged = "".join(capfd.readouterr())
    assert "delivery_failed" in logged
    assert given_up["id"] in logged


async def test_a_receiver_that_answers_410_is_left_alone_at_once(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token = await server.token()
        receiver.answers = [410]
        job_id = await submit(server, token, receiver.url)
        given_up = await delivery_when(server, token, job_id, state="failed")
        assert (given_up["attempts"], given_up["status"], len(receiver.requests)) == (1, 410, 1)
        assert "410" in given_up["error"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int, tmp_path: Path) -> None:
    async with hooked(tmp_path, webhook_waits_seconds=[]) as (server, receiver):
        token = await server.token()
        receiver.answers = [status]
        job_id = await submit(server, token, receiver.url)
        given_up = await delivery_when(server, token, job_id, state="failed")
        assert given_up["status"] == status
        assert [got.path for got in receiver.requests] == ["/hook?token=t0ken"]


async def test_a_delivery_whose_sender_vanished_after_the_post_comes_again_under_its_id(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token = await server.token()

        async def lose_the_lease(got: RecordedRequest) -> None:
            lost = {"lease": "a sender that is no more", "lease_until": 1}
            table = schema.deliveries
            await execute(server.services.store, sa.update(table).where(table.c.id == message_id(got)).values(lost))  # type: ignore[arg-type]

        receiver.answers = [lose_the_lease]
        job_id = await submit(server, token, receiver.url)
        first, second = await receiver.received(2)
        assert (message_id(first), first.body) == (message_id(second), second.body)
        done = await delivery_when(server, token, job_id, state="done")
        assert (done["id"], done["attempts"]) == (message_id(first), 2)


async def test_a_server_that_stops_gives_back_what_it_was_sending(tmp_path: Path) -> None:
    async with hooked(tmp_path, drain_seconds=0) as (server, receiver):
        receiver.answers = [hang]
        job_id = await submit(server, await server.token(), receiver.url)
        await receiver.received()
        url = f"sqlite:///{tmp_path}/data/signoff.db"
    async with opened(url) as store:
        [delivery] = await store.deliveries.of_job(job_id)
        assert (delivery.state, delivery.attempt, delivery.lease) == ("due", 0, None)


async def test_a_slow_receiver_stalls_only_its_own(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, slow), WebhookReceiver("127.0.0.2") as quick:
        token = await server.token()
        release = asyncio.Event()
        slow.answers = [lambda _: release.wait()] * 8
        for _ in range(8):
            await submit(server, token, slow.url)
        await slow.received(4)
        await submit(server, token, quick.url)
        await quick.received()
        assert len(slow.requests) == 4, "four at a time to one host"
        release.set()
        assert len({message_id(got) for got in await slow.received(8)}) == 8


# By hand


async def test_a_delivery_is_sent_again_by_hand_under_its_id(tmp_path: Path) -> None:
    async with hooked(tmp_path, webhook_waits_seconds=[]) as (server, receiver):
        token = await server.token()
        receiver.answers = [500]
        job_id = await submit(server, token, receiver.url)
        given_up = await delivery_when(server, token, job_id, state="failed")
        status, again = await server.ask("POST", f"/api/deliveries/{given_up['id']}/resend", token)
        assert (status, again["state"], again["id"]) == (202, "due", given_up["id"])
        await delivery_when(server, token, job_id, state="done")
        await server.ask("POST", f"/api/deliveries/{given_up['id']}/resend", await server.token("admin"))
        assert {message_id(got) for got in await receiver.received(3)} == {given_up["id"]}


async def test_another_users_deliveries_do_not_exist(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token, stranger = await server.token(), await server.token("user", "other@example.com")
        reviewer = await server.token("reviewer")
        job_id = await submit(server, token, receiver.url)
        done = await delivery_when(server, token, job_id, state="done")
        asked = [("GET", f"/api/jobs/{job_id}/deliveries"), ("POST", f"/api/deliveries/{done['id']}/resend")]
        for method, path in asked:
            status, _ = await server.ask(method, path, stranger)
            assert status == 404
        statuses = [(await server.ask(method, path, reviewer))[0] for method, path in asked]
        assert statuses == [200, 403], "a reviewer may look"
        status, _ = await server.ask("POST", "/api/deliveries/nobody/resend", token)
        assert status == 404
        assert len(receiver.requests) == 1


# What is refused


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://[::1]:80/",
        "http://localhost/",
        "http://169.254.169.254/latest",
        "http://2130706433/",
    ],
)
async def test_an_address_that_is_literally_private_is_refused_at_once(url: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        asked = {"body": chat("hello"), "target": "echo", "deliver": {"url": url, "secret": SECRET}}
        status, told = await server.ask("POST", "/api/jobs", await server.token(), json=asked)
        assert (status, told["code"]) == (400, "address_refused")


async def test_a_name_that_stands_for_a_private_address_is_refused_when_it_is_sent(tmp_path: Path) -> None:
    name = socket.gethostname()
    if any(info[4][0] == "" for info in socket.getaddrinfo(name, 80)):
        pytest.fail("this machine does not know its own name")
    async with WebhookReceiver("0.0.0.0") as receiver, live(tmp_path, webhook_waits_seconds=[]) as server:
        token = await server.token()
        job_id = await submit(server, token, receiver.url.replace("0.0.0.0", name))
        given_up = await delivery_when(server, token, job_id, state="failed")
        assert "is not at a public address" in given_up["error"]
        assert receiver.requests == []


@pytest.mark.parametrize(
    ("deliver", "words"),
    [
        ({"url": "https://example.com"}, "`deliver` needs a `secret`"),
        ({"url": "https://example.com", "secret": "whsec_c2hvcnQ="}, "24 to 64"),
        ({"url": "https://example.com", "secret": "s3cret"}, "24 to 64"),
        ({"url": "https://example.com", "secret": "whsec_***"}, "24 to 64"),
        ({"url": "https://u:p@example.com", "secret": SECRET}, "password"),
        ({"url": "ftp://example.com", "secret": SECRET}, "https://"),
        ({"url": 1}, "not a valid job"),
        ({"url": "https://example.com", "nonsense": 1}, "nonsense"),
    ],
)
async def test_a_webhook_that_cannot_work_is_a_problem_that_says_so(
    deliver: dict[str, Any], words: str, tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        asked = {"body": chat("hello"), "target": "echo", "deliver": deliver}
        status, told = await server.ask("POST", "/api/jobs", await server.token(), json=asked)
        assert status == 400
        assert words in told["detail"]
        assert not deliver.get("secret") or deliver["secret"] not in str(told)


async def test_one_idempotency_key_is_one_webhook(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token, headers = await server.token(), {"idempotency-key": "k"}
        asked: dict[str, Any] = {
            "body": chat("hi"),
            "target": "echo",
            "deliver": {"url": receiver.url, "secret": SECRET},
        }
        first = await server.ask("POST", "/api/jobs", token, json=asked, headers=dict(headers))
        again = await server.ask("POST", "/api/jobs", token, json=asked, headers=dict(headers))
        assert first[1]["job_id"] == again[1]["job_id"]
        asked["deliver"]["url"] += "&more"
        status, told = await server.ask("POST", "/api/jobs", token, json=asked, headers=dict(headers))
        assert (status, told["code"]) == (422, "idempotency_key_reused")


# What is secret


async def test_a_secret_is_nowhere_in_clear(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with hooked(tmp_path, webhook_waits_seconds=[0]) as (server, receiver):
        token, admin = await server.token(), await server.token("admin")
        receiver.answers = ["cut", 500]
        job_id = await submit(server, token, receiver.url)
        await delivery_when(server, token, job_id, state="failed")
        paths = (f"/job?id={job_id}", "/jobs", f"/api/jobs/{job_id}", f"/api/jobs/{job_id}/events")
        seen = [str(await server.ask("GET", path, admin)) for path in (*paths, f"/api/jobs/{job_id}/deliveries")]
        files = [path for path in (tmp_path / "data").iterdir() if path.name.startswith("signoff.db")]
        kept = b"".join(path.read_bytes() for path in files)
    key = SECRET.removeprefix("whsec_")
    assert job_id.encode() in kept
    assert key.encode() not in kept
    assert b"a key of twenty-four bytes" not in kept
    for text in (*seen, *capfd.readouterr()):
        assert key not in text
        assert "t0ken" not in text, "the address may hold one too"


def test_a_deployments_secret_is_checked_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(webhook_secret=f"{SECRET} {OTHER_SECRET}")  # type: ignore[arg-type]
    assert len(settings.webhook_secrets) == 2
    assert SECRET not in f"{settings!r} {settings.webhook_secrets!r}"
    monkeypatch.setenv("SIGNOFF_WEBHOOK_SECRET", "whsec_short")
    with pytest.raises(BadSettings, match="24 to 64") as caught:
        load()
    assert "whsec_short" not in str(caught.value)
