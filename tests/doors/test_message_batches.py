"""Batches of messages through the official client of Anthropic, as its API reference describes them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import anthropic
import pytest
import sqlalchemy as sa
from anthropic.types.messages import MessageBatch

from fakes.http_server import RecordedRequest, Reply, json_reply
from fakes.upstream import fake_upstream
from signoff.stores.batches_schema import batches
from support.live_server import Live, live, until
from support.stores import execute

pytestmark = pytest.mark.anyio
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """Yield a server that the tests of this module share."""
    async with live(tmp_path_factory.mktemp("server")) as server:
        await server.model("careful", review="always")
        yield server


@pytest.fixture
async def ai(server: Live) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Yield a client with a token of a new user."""
    token = await server.token(email=f"user{next(NUMBERS)}@example.com")
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key=token, max_retries=0) as ai:
        yield ai


def a_request(custom_id: str, text: str = "hello", model: str = "echo", **more: Any) -> Any:
    params = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": text}], **more}
    return {"custom_id": custom_id, "params": params}


async def ended(ai: anthropic.AsyncAnthropic, batch: MessageBatch) -> MessageBatch:
    async def look() -> MessageBatch | None:
        present = await ai.messages.batches.retrieve(batch.id)
        return present if present.processing_status == "ended" else None

    return await until(look)


async def test_a_batch_answers_each_request(ai: anthropic.AsyncAnthropic) -> None:
    batch = await ai.messages.batches.create(requests=[a_request(f"r-{number}", f"t {number}") for number in range(9)])
    assert batch.id.startswith("msgbatch_")
    assert (batch.type, batch.processing_status, batch.ended_at, batch.results_url) == (
        "message_batch",
        "in_progress",
        None,
        None,
    )
    assert batch.request_counts.model_dump() == counts(processing=9)
    assert (batch.expires_at - batch.created_at).total_seconds() == 24 * 3600
    done = await ended(ai, batch)
    assert done.request_counts.model_dump() == counts(succeeded=9)
    assert done.ended_at is not None
    results = [result async for result in await ai.messages.batches.results(batch.id)]
    assert [result.custom_id for result in results] == [f"r-{number}" for number in range(9)]
    for number, each in enumerate(results):
        assert each.result.type == "succeeded"
        [block] = each.result.message.content
        assert block.type == "text"
        assert block.text == f"t {number}"


async def test_an_idempotency_key_makes_one_batch(ai: anthropic.AsyncAnthropic, server: Live) -> None:
    keyed: Any = {"extra_headers": {"Idempotency-Key": "mine"}}
    requests = [a_request(f"r-{number}") for number in range(3)]
    first = await ai.messages.batches.create(requests=requests, **keyed)
    store = server.services.store
    batch = await store.batches.get(first.id)
    assert batch is not None
    stored_bytes = await store.files.stored_bytes(batch.user_id)
    again = await ai.messages.batches.create(requests=requests, **keyed)
    assert again.id == first.id
    with pytest.raises(anthropic.UnprocessableEntityError) as caught:
        await ai.messages.batches.create(requests=requests[:2], **keyed)
    assert "was used with another request" in str(caught.value)
    # and what the retries sent is deleted
    assert await store.files.stored_bytes(batch.user_id) == stored_bytes > 0
    assert (await ended(ai, first)).request_counts.model_dump() == counts(succeeded=3)
    # while another key, and none, make new batches
    other = await ai.messages.batches.create(requests=requests, extra_headers={"Idempotency-Key": "other"})
    none = await ai.messages.batches.create(requests=requests)
    assert len({first.id, other.id, none.id}) == 3
    with pytest.raises(anthropic.BadRequestError):
        await ai.messages.batches.create(requests=requests, extra_headers={"Idempotency-Key": "k" * 256})


def counts(**more: int) -> dict[str, int]:
    return {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0} | more


async def test_requests_that_are_invalid_or_fail_are_errored_one_by_one(ai: anthropic.AsyncAnthropic) -> None:
    requests = [a_request("good"), a_request("nobody", model="nobody"), a_request("bad", model="echo/status=400")]
    requests.append({"custom_id": "empty", "params": {"model": "echo"}})
    done = await ended(ai, await ai.messages.batches.create(requests=requests))
    assert done.request_counts.model_dump() == counts(succeeded=1, errored=3)
    results = {each.custom_id: each.result async for each in await ai.messages.batches.results(done.id)}
    assert results["good"].type == "succeeded"
    kinds = {}
    for name in ("nobody", "bad", "empty"):
        result = results[name]
        assert result.type == "errored"
        assert result.error.type == "error"
        kinds[name] = result.error.error.type
    assert kinds == {"nobody": "not_found_error", "bad": "invalid_request_error", "empty": "invalid_request_error"}


@pytest.mark.parametrize(("status", "kind"), [(402, "billing_error"), (529, "overloaded_error"), (500, "api_error")])
async def test_the_type_of_an_error_is_that_of_a_direct_request(
    status: int, kind: str, ai: anthropic.AsyncAnthropic, server: Live
) -> None:
    await server.model("faulty", attempts=1)
    request = a_request("a", model=f"faulty/status={status}")
    done = await ended(ai, await ai.messages.batches.create(requests=[request]))
    [result] = [each.result async for each in await ai.messages.batches.results(done.id)]
    assert result.type == "errored"
    assert result.error.error.type == kind
    with pytest.raises(anthropic.APIStatusError) as caught:
        await ai.messages.create(**request["params"])
    assert caught.value.body["error"]["type"] == kind  # type: ignore[index,call-overload]


async def test_a_cancelled_batch_keeps_what_is_done(ai: anthropic.AsyncAnthropic) -> None:
    requests = [a_request("done"), a_request("held", model="careful"), a_request("held-2", model="careful")]
    batch = await ai.messages.batches.create(requests=requests)

    async def is_held() -> bool | None:
        return True if (await ai.messages.batches.retrieve(batch.id)).processing_status == "in_progress" else None

    await until(is_held)
    cancelling = await ai.messages.batches.cancel(batch.id)
    assert cancelling.processing_status in {"canceling", "ended"}
    assert cancelling.cancel_initiated_at is not None
    done = await ended(ai, batch)
    assert done.request_counts.canceled >= 2
    types = {each.custom_id: each.result.type async for each in await ai.messages.batches.results(done.id)}
    assert types.keys() == {"done", "held", "held-2"}
    assert types["held"] == types["held-2"] == "canceled"
    # and cancelling it again changes nothing
    assert (await ai.messages.batches.cancel(batch.id)).processing_status == "ended"


async def test_requests_expire_with_the_window(ai: anthropic.AsyncAnthropic, server: Live) -> None:
    batch = await ai.messages.batches.create(requests=[a_request("held", model="careful")])
    await execute(server.services.store, sa.update(batches).where(batches.c.id == batch.id).values(expires_at=0))  # type: ignore[arg-type]
    done = await ended(ai, batch)
    assert done.request_counts.model_dump() == counts(expired=1)
    [result] = [each async for each in await ai.messages.batches.results(done.id)]
    assert result.result.type == "expired"


async def test_batches_are_listed_in_pages_in_both_directions(ai: anthropic.AsyncAnthropic) -> None:
    ids = [(await ai.messages.batches.create(requests=[a_request("a")])).id for _ in range(4)]
    page = await ai.messages.batches.list(limit=2)
    assert ([each.id for each in page.data], page.has_more) == ([ids[3], ids[2]], True)
    assert [each.id async for each in ai.messages.batches.list(limit=2)] == ids[::-1]
    newer = await ai.messages.batches.list(before_id=ids[1], limit=2)
    assert [each.id for each in newer.data] == [ids[3], ids[2]]


async def test_a_batch_that_has_ended_can_be_deleted(ai: anthropic.AsyncAnthropic) -> None:
    batch = await ai.messages.batches.create(requests=[a_request("a", model="careful")])
    with pytest.raises(anthropic.BadRequestError, match="has not ended"):
        await ai.messages.batches.delete(batch.id)
    await ai.messages.batches.cancel(batch.id)
    await ended(ai, batch)
    deleted = await ai.messages.batches.delete(batch.id)
    assert (deleted.id, deleted.type) == (batch.id, "message_batch_deleted")
    for call in (ai.messages.batches.retrieve, ai.messages.batches.cancel, ai.messages.batches.delete):
        with pytest.raises(anthropic.NotFoundError):
            await call(batch.id)


async def test_the_statuses_of_refusals_are_in_the_document(ai: anthropic.AsyncAnthropic, server: Live) -> None:
    batch = await ai.messages.batches.create(requests=[a_request("a", model="careful")])
    _, document = await server.ask("GET", "/schema/openapi.json")
    headers, path = {"x-api-key": ai.api_key or ""}, "/v1/messages/batches/{batch_id}"
    for method, rest in (("DELETE", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
        status, _ = await server.ask(method, path.format(batch_id=batch.id) + rest, headers=headers)
        assert str(status) in document["paths"][path + rest][method.lower()]["responses"]


async def test_results_that_have_expired_are_archived(ai: anthropic.AsyncAnthropic, server: Live) -> None:
    done = await ended(ai, await ai.messages.batches.create(requests=[a_request("a")]))
    assert (done.results_url is not None, done.archived_at) == (True, None)
    ids = sa.update(batches).where(batches.c.id == done.id)
    await execute(server.services.store, ids.values(completed_at=1_000_000))  # type: ignore[arg-type]
    archived = await ai.messages.batches.retrieve(done.id)
    assert (archived.results_url, archived.ended_at) == (None, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    assert archived.archived_at == datetime(1970, 1, 31, 0, 0, 1, tzinfo=UTC)
    # and a batch without results has no address of them
    await execute(server.services.store, ids.values(output_file_id=None))  # type: ignore[arg-type]
    empty = await ai.messages.batches.retrieve(done.id)
    assert (empty.results_url, empty.archived_at) == (None, None)


async def test_results_are_missing_until_the_end(ai: anthropic.AsyncAnthropic, server: Live) -> None:
    batch = await ai.messages.batches.create(requests=[a_request("a", model="careful")])
    headers = {"x-api-key": ai.api_key or ""}
    status, body = await server.ask("GET", f"/v1/messages/batches/{batch.id}/results", headers=headers)
    assert (status, body["type"], body["error"]["type"]) == (404, "error", "not_found_error")


@pytest.mark.parametrize(
    ("requests", "text"),
    [
        ([], "1 to 100000"),
        ([a_request("a"), a_request("a")], "occurs twice"),
        ([a_request("a b")], "custom_id"),
        ([a_request("x" * 65)], "custom_id"),
        ([{"custom_id": "a", "params": [1]}], "must be an object"),
        ([{"custom_id": "a"}], r"Missing required parameter: 'requests\[0\]\.params'"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_an_invalid_batch_is_refused(requests: Any, text: str, ai: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match=text) as caught:
        await ai.messages.batches.create(requests=requests)
    assert caught.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index,call-overload]


async def test_batches_of_another_user_do_not_exist(ai: anthropic.AsyncAnthropic, server: Live) -> None:
    batch = await ended(ai, await ai.messages.batches.create(requests=[a_request("a")]))
    token = await server.token(email="other@example.com")
    for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
        status, _ = await server.ask(method, f"/v1/messages/batches/{batch.id}{path}", token)
        assert status == 404
    # nor are its files, and it is no batch of OpenAI's API
    for path in ("/v1/files", "/v1/batches"):
        assert (await server.ask("GET", path, ai.api_key))[1]["data"] == []
    assert (await server.ask("GET", f"/v1/batches/{batch.id}", ai.api_key))[0] == 404


async def test_batches_of_an_upstream_are_passed_on_where_a_request_names_them(server: Live) -> None:
    async with fake_upstream() as fake:
        await server.model("claude", kind="openai", url=fake.at("answer"))
        token = await server.token("admin")
        await server.ask("GET", "/v1/messages/batches", token, headers={"x-signoff-model": "claude"})
        await server.ask("GET", "/v1/messages/batches/msgbatch_01HkcTjaV5uDC8jWR4ZsDV8d?model=claude", token)
        assert [request.path.partition("/v1/")[2] for request in fake.requests] == [
            "messages/batches",
            "messages/batches/msgbatch_01HkcTjaV5uDC8jWR4ZsDV8d",
        ]


async def test_an_admin_can_open_batches_of_an_upstream_to_users_who_read_their_own(server: Live) -> None:
    async def answer(_: RecordedRequest) -> Reply:
        return json_reply({"id": "msgbatch_01HkcTjaV5uDC8jWR4ZsDV8d", "type": "message_batch"})

    async with fake_upstream(answer) as fake:
        await server.model("opened", kind="openai", url=fake.url, routes=("batches",))
        owner, other = await server.token(), await server.token(email="stranger@example.com")
        batch = {"requests": [{"custom_id": "a", "params": {"model": "opened"}}]}
        status, created = await server.ask("POST", "/v1/messages/batches?model=opened", owner, json=batch)
        assert status == 200, created
        path = f"/v1/messages/batches/{created['id']}/results"
        assert [(await server.ask("GET", path, token))[0] for token in (owner, other)] == [200, 404]
