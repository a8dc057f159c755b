"""Webhooks: at-least-once delivery under one id, signatures, reviews, and cancelled jobs."""

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
from structlog.testing import capture_logs

from fakes.http_server import RecordedRequest
from fakes.webhook_receiver import OTHER_SECRET, SECRET, WebhookReceiver, hang, message_id
from signoff.core.delivery import DeliveryTarget
from signoff.settings import BadSettings, Settings, load
from signoff.stores import schema
from signoff.work.admin.rotation import rotate_secrets
from support.database_files import is_in_clear
from support.live_server import Live, chat, live, until, words
from support.stores import a_job, execute, opened

pytestmark = pytest.mark.anyio

LOCAL = {"webhook_allow": ["127.0.0.0/8"], "webhook_waits_seconds": [0.0] * 30}


@contextlib.asynccontextmanager
async def hooked(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Live, WebhookReceiver]]:
    """Yield a server that may send to this machine, and a receiver of webhooks."""
    async with WebhookReceiver() as receiver, live(tmp_path, **(LOCAL | settings)) as server:
        yield server, receiver


async def submit(
    server: Live, token: str, url: str, *, secret: str | None = SECRET, target: str = "echo", **more: Any
) -> str:
    """Submit a job whose end is sent to `url`; return its id."""
    deliver = {"url": url} | ({} if secret is None else {"secret": secret})
    request = {"body": chat("hello", target), "target": target, "deliver": deliver} | more
    status, job = await server.ask("POST", "/api/jobs", token, json=request)
    assert status == 202, job
    return job["job_id"]


async def deliveries(server: Live, token: str, job_id: str) -> list[dict[str, Any]]:
    """Return the deliveries of the job."""
    status, payload = await server.ask("GET", f"/api/jobs/{job_id}/deliveries", token)
    assert status == 200
    return payload["data"]


async def delivery_when(server: Live, token: str, job_id: str, **fields: Any) -> dict[str, Any]:
    """Return the delivery of the job as soon as it has the values of `fields`."""

    async def find_delivery() -> dict[str, Any] | None:
        rows = await deliveries(server, token, job_id)
        return rows[0] if rows and fields.items() <= rows[0].items() else None

    return await until(find_delivery)


# Content and signature


async def test_the_url_of_a_webhook_is_not_stored_in_clear(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token = await server.token()
        job_id = await submit(server, token, receiver.url)
        await receiver.received()
        await delivery_when(server, token, job_id, state="done")
        _, events = await server.ask("GET", f"/api/jobs/{job_id}/events", await server.token("admin"))
        assert "t0ken" not in json.dumps(events)
    assert is_in_clear(job_id, tmp_path / "data")
    assert not is_in_clear("t0ken", tmp_path / "data")


async def test_a_webhook_that_was_stored_in_clear_by_an_earlier_version_is_sent(tmp_path: Path) -> None:
    async with hooked(tmp_path, webhook_secret=SECRET) as (server, receiver):
        token = await server.token()
        for secret in (None, OTHER_SECRET):
            sealed = None if secret is None else server.services.adapters.vault.seal(secret)
            target = DeliveryTarget(address=receiver.url, host="127.0.0.1", sealed=sealed)
            job = a_job(deliver=(target,), target="echo", model="echo")
            await server.services.store.jobs.insert(job, actor="test")
            server.services.adapters.broker.notify(job.id, 5)
            request = (await receiver.received(2 if secret else 1))[-1]
            Webhook(secret or SECRET).verify(request.body, request.headers)
        assert token
        # when the key is rotated, then the URL is encrypted too, and is still known
        assert (await rotate_secrets(server.services)).count == 2
        status, _ = await server.ask("POST", f"/api/deliveries/msg_{job.id}/resend", await server.token("admin"))
        assert (status, (await receiver.received(3))[-1].path) == (202, "/hook?token=t0ken")
        assert receiver.url not in str(await server.services.store.jobs.get(job.id))


async def test_the_end_of_a_job_is_sent_and_two_client_libraries_accept_it(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token = await server.token()
        job_id = await submit(server, token, receiver.url, metadata={"mine": 1})

        [request] = await receiver.received()
        event = Webhook(SECRET).verify(request.body, request.headers)
        assert (event["type"], event["data"]["job_id"], event["data"]["metadata"]) == (
            "job.succeeded",
            job_id,
            {"mine": 1},
        )
        assert words(event["data"]["response"]) == "hello"
        _, job = await server.ask("GET", f"/api/jobs/{job_id}", token)
        assert (event["data"], event["timestamp"]) == (job, job["updated_at"])
        with openai.OpenAI(api_key="none") as client:
            openai_event = client.webhooks.unwrap(request.body, request.headers, secret=SECRET)
        assert openai_event.type == "job.succeeded"
        assert request.path == "/hook?token=t0ken"
        assert request.headers["content-type"] == "application/json"
        delivery = await delivery_when(server, token, job_id, state="done")
        assert (delivery["id"], delivery["attempts"], delivery["status"], delivery["error"]) == (
            message_id(request),
            1,
            200,
            None,
        )


async def test_a_failed_job_is_sent_as_failed(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        await submit(server, await server.token(), receiver.url, target="echo/status=400")
        [request] = await receiver.received()
        event = Webhook(SECRET).verify(request.body, request.headers)
        assert (event["type"], event["data"]["status"], event["data"]["error"]["status"]) == ("job.failed", "fail", 400)


async def test_both_secrets_of_the_deployment_sign_during_a_rotation(tmp_path: Path) -> None:
    async with hooked(tmp_path, webhook_secret=f"{SECRET} {OTHER_SECRET}") as (server, receiver):
        await submit(server, await server.token(), receiver.url, secret=None)
        [request] = await receiver.received()
        assert len(request.headers["webhook-signature"].split()) == 2
        for secret in (SECRET, OTHER_SECRET):
            Webhook(secret).verify(request.body, request.headers)


async def test_the_secret_of_a_job_replaces_those_of_the_deployment(tmp_path: Path) -> None:
    async with hooked(tmp_path, webhook_secret=OTHER_SECRET) as (server, receiver):
        await submit(server, await server.token(), receiver.url)
        [request] = await receiver.received()
        Webhook(SECRET).verify(request.body, request.headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(OTHER_SECRET).verify(request.body, request.headers)


# Time of the delivery


async def test_a_held_answer_is_sent_after_its_verdict_and_as_edited(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        await server.model("careful", review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        job_id = await submit(server, token, receiver.url, target="careful")
        await server.job_when(token, job_id, lambda job: job["status"] == "human")
        assert (await deliveries(server, token, job_id), receiver.requests) == ([], [])

        await server.ask(
            "POST", "/reviewJob", reviewer, json={"id": job_id, "status": "success", "response": {"better": True}}
        )

        [request] = await receiver.received()
        event = Webhook(SECRET).verify(request.body, request.headers)
        assert (event["type"], event["data"]["response"]) == ("job.succeeded", {"better": True})


async def test_a_rejected_job_is_sent_as_failed_without_its_answer(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        await server.model("careful", review="always")
        token, reviewer = await server.token(), await server.token("reviewer")
        job_id = await submit(server, token, receiver.url, target="careful")
        await server.job_when(token, job_id, lambda job: job["status"] == "human")

        await server.ask("POST", "/reviewJob", reviewer, json={"id": job_id, "status": "fail", "reason": "wrong"})

        [request] = await receiver.received()
        event = Webhook(SECRET).verify(request.body, request.headers)
        assert (event["type"], event["data"]["error"]["code"]) == ("job.failed", "rejected")
        assert event["data"]["response"] is None
        for path in (f"/api/jobs/{job_id}", f"/job?id={job_id}"):
            assert (await server.ask("GET", path, token))[1]["response"] is None, "what was refused stays unseen"
            assert words((await server.ask("GET", path, reviewer))[1]["response"]) == "hello"


@pytest.mark.parametrize("target", ["careful", "echo/hang"])
async def test_a_cancelled_job_sends_no_webhook(target: str, tmp_path: Path) -> None:
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
        assert [json.loads(request.body)["data"]["job_id"] for request in receiver.requests] == [other]
        assert await deliveries(server, token, job_id) == []


# Failed deliveries


async def test_a_delivery_that_failed_three_times_succeeds_under_the_same_id(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token = await server.token()
        receiver.answers = [503, "cut", 429]
        job_id = await submit(server, token, receiver.url)
        requests = await receiver.received(4)
        assert len({message_id(request) for request in requests}) == 1
        assert len({request.body for request in requests}) == 1
        for request in requests:
            Webhook(SECRET).verify(request.body, request.headers)
        delivery = await delivery_when(server, token, job_id, state="done")
        assert (delivery["attempts"], len(receiver.requests)) == (4, 4)


async def test_a_receiver_that_starts_late_gets_the_webhook(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server_socket:
        port = server_socket.getsockname()[1]
    async with live(tmp_path, **(LOCAL | {"webhook_waits_seconds": [0.0] * 1000})) as server:
        token = await server.token()
        job_id = await submit(server, token, f"http://127.0.0.1:{port}/")

        async def tried_delivery() -> dict[str, Any] | None:
            rows = await deliveries(server, token, job_id)
            return rows[0] if rows and rows[0]["attempts"] >= 3 else None

        assert "refused" in (await until(tried_delivery))["error"]
        async with WebhookReceiver(port=port) as receiver:
            [request] = await receiver.received()
            assert (await delivery_when(server, token, job_id, state="done"))["id"] == message_id(request)


async def test_a_delivery_that_never_succeeds_is_given_up_and_logged(tmp_path: Path) -> None:
    with capture_logs() as events:
        async with hooked(tmp_path, webhook_waits_seconds=[0, 0]) as (server, receiver):
            token = await server.token()
            receiver.answers = [500] * 10
            job_id = await submit(server, token, receiver.url)
            failed = await delivery_when(server, token, job_id, state="failed")
            assert (failed["attempts"], failed["status"], len(receiver.requests)) == (3, 500, 3)
            assert "Given up after 3 attempts" in failed["error"]
            deliveries = await server.services.store.deliveries.failed(10)
            assert [delivery.id for delivery in deliveries] == [failed["id"]]
    assert [event["delivery_id"] for event in events if event["event"] == "delivery_failed"] == [failed["id"]]


async def test_a_delivery_is_given_up_at_once_after_a_410(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token = await server.token()
        receiver.answers = [410]
        job_id = await submit(server, token, receiver.url)
        failed = await delivery_when(server, token, job_id, state="failed")
        assert (failed["attempts"], failed["status"], len(receiver.requests)) == (1, 410, 1)
        assert "410" in failed["error"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int, tmp_path: Path) -> None:
    async with hooked(tmp_path, webhook_waits_seconds=[]) as (server, receiver):
        token = await server.token()
        receiver.answers = [status]
        job_id = await submit(server, token, receiver.url)
        failed = await delivery_when(server, token, job_id, state="failed")
        assert failed["status"] == status
        assert [request.path for request in receiver.requests] == ["/hook?token=t0ken"]


async def test_a_delivery_whose_sender_died_after_the_post_is_repeated_under_its_id(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token = await server.token()

        async def lose_the_lease(request: RecordedRequest) -> None:
            row = {"lease": "a sender that is no more", "lease_until": 1}
            table = schema.deliveries
            await execute(server.services.store, sa.update(table).where(table.c.id == message_id(request)).values(row))  # type: ignore[arg-type]

        receiver.answers = [lose_the_lease]
        job_id = await submit(server, token, receiver.url)
        first, second = await receiver.received(2)
        assert (message_id(first), first.body) == (message_id(second), second.body)
        delivery = await delivery_when(server, token, job_id, state="done")
        assert (delivery["id"], delivery["attempts"]) == (message_id(first), 2)


async def test_a_server_that_stops_releases_the_deliveries_that_it_was_sending(tmp_path: Path) -> None:
    async with hooked(tmp_path, drain_seconds=0) as (server, receiver):
        receiver.answers = [hang]
        job_id = await submit(server, await server.token(), receiver.url)
        await receiver.received()
        url = f"sqlite:///{tmp_path}/data/signoff.db"
    async with opened(url) as store:
        [delivery] = await store.deliveries.of_job(job_id)
        assert (delivery.state, delivery.attempt, delivery.lease) == ("due", 0, None)


async def test_a_slow_receiver_delays_only_its_own_deliveries(tmp_path: Path) -> None:
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
        assert len({message_id(request) for request in await slow.received(8)}) == 8


# Manual redelivery


async def test_a_redelivery_has_the_same_id(tmp_path: Path) -> None:
    async with hooked(tmp_path, webhook_waits_seconds=[]) as (server, receiver):
        token = await server.token()
        receiver.answers = [500]
        job_id = await submit(server, token, receiver.url)
        failed = await delivery_when(server, token, job_id, state="failed")
        status, again = await server.ask("POST", f"/api/deliveries/{failed['id']}/resend", token)
        assert (status, again["state"], again["id"]) == (202, "due", failed["id"])
        await delivery_when(server, token, job_id, state="done")
        await server.ask("POST", f"/api/deliveries/{failed['id']}/resend", await server.token("admin"))
        assert {message_id(request) for request in await receiver.received(3)} == {failed["id"]}


async def test_deliveries_of_another_user_are_not_found(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token, stranger = await server.token(), await server.token("user", "other@example.com")
        reviewer = await server.token("reviewer")
        job_id = await submit(server, token, receiver.url)
        delivery = await delivery_when(server, token, job_id, state="done")
        requests = [("GET", f"/api/jobs/{job_id}/deliveries"), ("POST", f"/api/deliveries/{delivery['id']}/resend")]
        for method, path in requests:
            status, _ = await server.ask(method, path, stranger)
            assert status == 404
        statuses = [(await server.ask(method, path, reviewer))[0] for method, path in requests]
        assert statuses == [200, 403], "a reviewer may look"
        status, _ = await server.ask("POST", "/api/deliveries/nobody/resend", token)
        assert status == 404
        assert len(receiver.requests) == 1


# Refused webhooks


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
async def test_an_obviously_private_address_is_refused_when_the_job_is_submitted(url: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        request = {"body": chat("hello"), "target": "echo", "deliver": {"url": url, "secret": SECRET}}
        status, payload = await server.ask("POST", "/api/jobs", await server.token(), json=request)
        assert (status, payload["code"]) == (400, "address_refused")


async def test_a_name_with_a_private_address_is_refused_when_the_webhook_is_sent(tmp_path: Path) -> None:
    name = socket.gethostname()
    if any(info[4][0] == "" for info in socket.getaddrinfo(name, 80)):
        pytest.fail("this machine does not know its own name")
    async with WebhookReceiver("0.0.0.0") as receiver, live(tmp_path, webhook_waits_seconds=[]) as server:
        token = await server.token()
        job_id = await submit(server, token, receiver.url.replace("0.0.0.0", name))
        failed = await delivery_when(server, token, job_id, state="failed")
        assert "is not at a public address" in failed["error"]
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
async def test_an_invalid_webhook_is_refused_with_the_reason(
    deliver: dict[str, Any], words: str, tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        request = {"body": chat("hello"), "target": "echo", "deliver": deliver}
        status, payload = await server.ask("POST", "/api/jobs", await server.token(), json=request)
        assert status == 400
        assert words in payload["detail"]
        assert not deliver.get("secret") or deliver["secret"] not in str(payload)


async def test_an_idempotency_key_covers_the_webhook(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (server, receiver):
        token, headers = await server.token(), {"idempotency-key": "k"}
        request: dict[str, Any] = {
            "body": chat("hi"),
            "target": "echo",
            "deliver": {"url": receiver.url, "secret": SECRET},
        }
        first = await server.ask("POST", "/api/jobs", token, json=request, headers=dict(headers))
        again = await server.ask("POST", "/api/jobs", token, json=request, headers=dict(headers))
        assert first[1]["job_id"] == again[1]["job_id"]
        request["deliver"]["url"] += "&more"
        status, payload = await server.ask("POST", "/api/jobs", token, json=request, headers=dict(headers))
        assert (status, payload["code"]) == (422, "idempotency_key_reused")


# Secrets


async def test_a_webhook_secret_is_never_stored_or_logged_in_plain_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with hooked(tmp_path, webhook_waits_seconds=[0]) as (server, receiver):
        token, admin = await server.token(), await server.token("admin")
        receiver.answers = ["cut", 500]
        job_id = await submit(server, token, receiver.url)
        await delivery_when(server, token, job_id, state="failed")
        paths = (f"/job?id={job_id}", "/jobs", f"/api/jobs/{job_id}", f"/api/jobs/{job_id}/events")
        responses = [str(await server.ask("GET", path, admin)) for path in (*paths, f"/api/jobs/{job_id}/deliveries")]
    key = SECRET.removeprefix("whsec_")
    assert is_in_clear(job_id, tmp_path / "data")
    assert not is_in_clear(key, tmp_path / "data")
    assert not is_in_clear("a key of twenty-four bytes", tmp_path / "data")
    for text in (*responses, *capfd.readouterr()):
        assert key not in text
        assert "t0ken" not in text, "the address may hold one too"


def test_the_secret_of_a_deployment_is_validated_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(webhook_secret=f"{SECRET} {OTHER_SECRET}")  # type: ignore[arg-type]
    assert len(settings.webhook_secrets) == 2
    assert SECRET not in f"{settings!r} {settings.webhook_secrets!r}"
    monkeypatch.setenv("SIGNOFF_WEBHOOK_SECRET", "whsec_short")
    with pytest.raises(BadSettings, match="24 to 64") as raised:
        load()
    assert "whsec_short" not in str(raised.value)
