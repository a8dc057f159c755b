"""Files and batches through the official client of OpenAI, as its API reference describes them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from fakes.bucket import bucket_url
from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.stores.batches_schema import batches, files
from signoff.work.reviews.desk import VerdictRequest, decide
from support.batches import CHAT, a_line, as_file, created, ended, new_user, results, uploaded
from support.live_server import Live, live, until
from support.stores import execute

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """Yield a server that the tests of this module share; each has a user of its own."""
    async with live(tmp_path_factory.mktemp("server"), max_file_bytes=200_000) as server:
        await server.model("careful", review="always")
        yield server


@pytest.fixture
async def ai(server: Live) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield a client with a token of a new user."""
    async with new_user(server) as ai:
        yield ai


# Files


async def test_a_file_is_uploaded_listed_read_and_deleted(ai: openai.AsyncOpenAI) -> None:
    content = as_file(a_line("a"), a_line("b"))
    file = await ai.files.create(file=("requests.jsonl", content), purpose="batch")
    assert file.id.startswith("file-")
    assert (file.object, file.bytes, file.filename) == ("file", len(content), "requests.jsonl")
    assert (file.purpose, file.status) == ("batch", "processed")
    assert file.id in {each.id async for each in ai.files.list()}
    assert await ai.files.retrieve(file.id) == file
    assert (await ai.files.content(file.id)).content == content
    deleted = await ai.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    for call in (ai.files.retrieve, ai.files.content, ai.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            await call(file.id)
        assert caught.value.param == "id"
    assert file.id not in {each.id async for each in ai.files.list()}


@pytest.mark.parametrize(("purpose", "days"), [("batch", 30), ("assistants", None), ("user_data", None)])
async def test_the_lifetime_of_a_file_depends_on_its_purpose(purpose: Any, days: Any, ai: openai.AsyncOpenAI) -> None:
    file = await ai.files.create(file=b"x", purpose=purpose)
    assert file.expires_at == (None if days is None else file.created_at + days * 24 * 3600)


async def test_a_lifetime_can_be_chosen(ai: openai.AsyncOpenAI) -> None:
    file = await ai.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 4545})
    assert file.expires_at == file.created_at + 4545


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"purpose": "nonsense"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
        ({"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": 2592001}}, "expires_after.seconds"),
        ({"purpose": "batch", "expires_after": {"anchor": "now", "seconds": 4000}}, "expires_after.anchor"),
    ],
)
async def test_an_upload_with_an_invalid_field_is_refused(more: Any, param: str, ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.files.create(file=b"x", **more)
    assert (caught.value.param, caught.value.code) == (param, "invalid_value")
    assert [each async for each in ai.files.list()] == []


@pytest.mark.parametrize(("missing", "form"), [("purpose", {"file": b"x"}), ("file", {"purpose": "batch"})])
async def test_an_upload_without_a_required_field_names_it(missing: str, form: Any, server: Live) -> None:
    status, body = await server.ask("POST", "/v1/files", await server.token(), data=form_of(form))
    assert (status, body["error"]["param"], body["error"]["code"]) == (400, missing, "missing_required_parameter")


def form_of(fields: dict[str, Any]) -> Any:
    import aiohttp

    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        form.add_field(name, value, **({"filename": "a.jsonl"} if name == "file" else {}))
    return form


async def test_a_file_may_be_as_large_as_the_setting_and_no_byte_larger(server: Live, ai: openai.AsyncOpenAI) -> None:
    file = await ai.files.create(file=b"x" * 200_000, purpose="batch")
    assert file.bytes == 200_000
    for size in (200_001, 3_000_000):
        with pytest.raises(openai.APIStatusError) as caught:
            await ai.files.create(file=b"x" * size, purpose="batch")
        assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")


async def test_an_empty_file_is_a_file(ai: openai.AsyncOpenAI) -> None:
    file = await ai.files.create(file=("empty.jsonl", b""), purpose="batch")
    assert file.bytes == 0
    assert (await ai.files.content(file.id)).content == b""


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\\b\\c.jsonl", "Köln \u202e.jsonl", '"quoted".jsonl'])
async def test_the_name_of_a_file_is_a_plain_name(name: str, ai: openai.AsyncOpenAI) -> None:
    file = await ai.files.create(file=(name, b"x"), purpose="batch")
    assert not set(file.filename) & set("/\\\u202e")
    content = await ai.files.with_raw_response.content(file.id)
    assert content.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    assert content.headers["x-content-type-options"] == "nosniff"


async def test_files_are_listed_in_pages_by_order_and_purpose(ai: openai.AsyncOpenAI) -> None:
    ids = [(await ai.files.create(file=b"x", purpose="batch")).id for _ in range(5)]
    other = (await ai.files.create(file=b"x", purpose="evals")).id
    page = await ai.files.list(limit=2, purpose="batch")
    assert ([file.id for file in page.data], page.has_more) == ([ids[4], ids[3]], True)
    assert [file.id async for file in ai.files.list(limit=2, purpose="batch")] == ids[::-1]
    assert [file.id async for file in ai.files.list(limit=2, order="asc")] == [*ids, other]
    assert [file.id async for file in ai.files.list(after=ids[4], order="asc")] == [other]
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"purpose": "nonsense"}, {"after": "file-"}):
        with pytest.raises(openai.BadRequestError) as caught:
            await ai.files.list(**wrong)  # type: ignore[arg-type]
        assert caught.value.param == next(iter(wrong))


async def test_values_of_enumerations_count_in_any_case(ai: openai.AsyncOpenAI) -> None:
    lifetime: Any = {"anchor": "CREATED_AT", "seconds": 4000}
    purpose: Any = "Batch"
    content = as_file(a_line("a"))
    file = await ai.files.create(file=("in.jsonl", content), purpose=purpose, expires_after=lifetime)
    assert (file.purpose, file.expires_at) == ("batch", file.created_at + 4000)
    listed = ai.files.list(purpose="BATCH", order="ASC")  # type: ignore[arg-type]
    assert [each.id async for each in listed] == [file.id]
    batch = await ai.batches.create(
        input_file_id=file.id,
        endpoint="/V1/Chat/Completions",  # type: ignore[arg-type]
        completion_window="24H",  # type: ignore[arg-type]
        output_expires_after=lifetime,
    )
    assert (batch.endpoint, batch.completion_window) == (CHAT, "24h")
    assert (await ended(ai, batch)).status == "completed"


async def test_all_files_can_be_deleted_while_their_pages_are_read(ai: openai.AsyncOpenAI) -> None:
    ids = [(await ai.files.create(file=b"x", purpose="batch")).id for _ in range(25)]
    deleted = list[str]()
    async for page in (await ai.files.list(limit=10)).iter_pages():
        for file in page.data:
            await ai.files.delete(file.id)
            deleted.append(file.id)
    assert deleted == ids[::-1]
    assert [each async for each in ai.files.list()] == []


async def test_files_and_batches_of_another_user_do_not_exist(server: Live, ai: openai.AsyncOpenAI) -> None:
    batch = await ended(ai, await created(ai, a_line("a")))
    async with new_user(server) as other:
        for file_id in (batch.input_file_id, batch.output_file_id or ""):
            for call in (other.files.retrieve, other.files.content, other.files.delete):
                with pytest.raises(openai.NotFoundError):
                    await call(file_id)
        for call in (other.batches.retrieve, other.batches.cancel):
            with pytest.raises(openai.NotFoundError, match="No batch found"):
                await call(batch.id)
        assert [each async for each in other.batches.list()] == []
        assert [each async for each in other.files.list()] == []
        # whose file cannot be read through a batch either
        stolen = await other.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
        errors = (await ended(other, stolen)).errors
        assert errors is not None
        assert errors.data is not None
        assert "annot find file" in (errors.data[0].message or "")


# Batches


async def test_a_batch_answers_each_request_once_under_its_own_id(ai: openai.AsyncOpenAI) -> None:
    lines = [a_line(f"request-{number}", f"text {number}") for number in range(30)]
    batch = await created(ai, *lines, metadata={"nightly": "eval"})
    assert batch.id.startswith("batch_")
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", CHAT, "24h")
    assert batch.metadata == {"nightly": "eval"}
    assert batch.expires_at == batch.created_at + 24 * 3600
    done = await ended(ai, batch)
    assert (done.status, done.model, done.errors, done.error_file_id) == ("completed", "echo", None, None)
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0
    answers = await results(ai, done.output_file_id)
    assert [answer["custom_id"] for answer in answers] == [line["custom_id"] for line in lines]
    for number, answer in enumerate(answers):
        assert answer["id"].startswith("batch_req_")
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["request_id"]
        assert answer["response"]["body"]["choices"][0]["message"]["content"] == f"text {number}"
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]
    output = await ai.files.retrieve(done.output_file_id or "")
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert output.expires_at == output.created_at + 30 * 24 * 3600


async def test_requests_that_fail_are_in_the_error_file(ai: openai.AsyncOpenAI, server: Live) -> None:
    lines = [a_line(name, model="echo") for name in ("a", "b", "c")]
    await server.model("half", kind="echo", attempts=1)
    bad = [a_line(name, model="half/status=400") for name in ("x", "y")]
    done = await ended(ai, await created(ai, *lines))
    assert done.request_counts is not None
    assert done.request_counts.completed == 3
    failed = await ended(ai, await created(ai, *bad))
    assert (failed.status, failed.output_file_id) == ("completed", None)
    assert failed.request_counts is not None
    assert failed.request_counts.model_dump() == {"total": 2, "completed": 0, "failed": 2}
    errors = await results(ai, failed.error_file_id)
    assert [error["custom_id"] for error in errors] == ["x", "y"]
    assert {error["response"]["status_code"] for error in errors} == {400}
    assert errors[0]["response"]["body"]["error"]["message"]
    assert errors[0]["error"]["code"]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/embeddings", {"input": ["one", "two"]}),
        ("/v1/responses", {"input": "hello"}),
        ("/v1/moderations", {"input": "hello"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}),
    ],
)
async def test_a_batch_may_be_of_any_endpoint(endpoint: str, body: Any, ai: openai.AsyncOpenAI) -> None:
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "echo", **body}}
    done = await ended(ai, await created(ai, line, endpoint=endpoint))
    [answer] = await results(ai, done.output_file_id)
    assert answer["response"]["status_code"] == 200


LONG = "x" * 600
INVALID_LINES: list[tuple[str, str, str | None, list[Any]]] = [
    ("invalid_json_line", "not parseable as valid JSON", None, [a_line("a"), "{invalid json here"]),
    ("invalid_json_line", "not an object", None, [a_line("a"), "[1, 2]"]),
    (
        "missing_required_parameter",
        "custom_id",
        "custom_id",
        [a_line("a"), {"method": "POST", "url": CHAT, "body": {}}],
    ),
    ("missing_required_parameter", "method", "method", [a_line("a"), {"custom_id": "b", "url": CHAT, "body": {}}]),
    ("missing_required_parameter", "url", "url", [a_line("a"), {"custom_id": "b", "method": "POST", "body": {}}]),
    ("missing_required_parameter", "body", "body", [a_line("a"), {"custom_id": "b", "method": "POST", "url": CHAT}]),
    ("duplicate_custom_id", "used in an earlier line", "custom_id", [a_line("a"), a_line("a")]),
    ("invalid_value", "1 to 512", "custom_id", [a_line("a"), a_line("")]),
    ("invalid_value", "1 to 512", "custom_id", [a_line("a"), a_line(LONG)]),
    ("invalid_type", "custom_id", "custom_id", [a_line("a"), a_line("b") | {"custom_id": 7}]),
    ("invalid_method", "POST", "method", [a_line("a"), a_line("b") | {"method": "GET"}]),
    ("invalid_url", "does not match", "url", [a_line("a"), a_line("b", url="/v1/embeddings")]),
    ("invalid_request", "must be an object", "body", [a_line("a"), a_line("b") | {"body": "text"}]),
    ("invalid_request", "Model parameter is required", "body.model", [a_line("a"), a_line("b") | {"body": {}}]),
    ("invalid_request", "Messages", "body.messages", [a_line("a"), a_line("b") | {"body": {"model": "echo"}}]),
    ("streaming_unsupported", "not supported", "body.stream", [a_line("a"), a_line("b", stream=True)]),
    ("mismatched_model", "same model", "body.model", [a_line("a"), a_line("b", model="careful")]),
]


@pytest.mark.parametrize(("code", "text", "param", "lines"), INVALID_LINES, ids=lambda value: str(value)[:24])
async def test_a_fault_of_a_line_fails_the_batch_with_its_number(
    code: str, text: str, param: str | None, lines: list[Any], ai: openai.AsyncOpenAI
) -> None:
    failed = await ended(ai, await created(ai, *lines))
    assert (failed.status, failed.output_file_id, failed.error_file_id) == ("failed", None, None)
    assert failed.failed_at is not None
    assert failed.errors is not None
    assert failed.errors.object == "list"
    [error] = failed.errors.data or []
    assert (error.code, error.line, error.param) == (code, 2, param)
    assert text in (error.message or "")


async def test_all_faults_of_a_file_are_listed_by_line(ai: openai.AsyncOpenAI) -> None:
    failed = await ended(ai, await created(ai, "{", a_line("a"), "", a_line("a"), a_line("b", stream=True)))
    assert failed.errors is not None
    assert [(error.line, error.code) for error in failed.errors.data or []] == [
        (1, "invalid_json_line"),
        (4, "duplicate_custom_id"),
        (5, "streaming_unsupported"),
    ]


async def test_no_more_than_a_hundred_faults_are_listed(ai: openai.AsyncOpenAI) -> None:
    failed = await ended(ai, await created(ai, *["{"] * 150))
    assert failed.errors is not None
    assert len(failed.errors.data or []) == 100


async def test_a_model_that_does_not_exist_fails_the_batch(ai: openai.AsyncOpenAI) -> None:
    failed = await ended(ai, await created(ai, a_line("a", model="nobody")))
    assert failed.errors is not None
    [error] = failed.errors.data or []
    assert (error.code, error.line, error.param) == ("model_not_found", 1, "body.model")
    assert "not supported" in (error.message or "")


async def test_a_file_without_requests_fails_the_batch(ai: openai.AsyncOpenAI) -> None:
    failed = await ended(ai, await created(ai, "", "  "))
    assert failed.errors is not None
    assert [error.code for error in failed.errors.data or []] == ["empty_file"]


async def test_a_file_with_too_many_requests_fails_the_batch(
    ai: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signoff.core.batch_lines.MAX_LINES", 3)
    failed = await ended(ai, await created(ai, *(a_line(str(number)) for number in range(5))))
    assert failed.errors is not None
    assert [(error.code, error.line) for error in failed.errors.data or []] == [("too_many_tasks", 4)]


async def test_a_file_that_does_not_exist_fails_the_batch(ai: openai.AsyncOpenAI) -> None:
    batch = await ai.batches.create(input_file_id="file-nonsense", endpoint=CHAT, completion_window="24h")
    assert (batch.status, batch.input_file_id) == ("validating", "file-nonsense")
    failed = await ended(ai, batch)
    assert failed.errors is not None
    [error] = failed.errors.data or []
    assert (error.code, error.line) == ("invalid_request", None)
    assert "Cannot find file" in (error.message or "")


async def test_a_file_of_another_purpose_fails_the_batch(ai: openai.AsyncOpenAI) -> None:
    file = await ai.files.create(file=as_file(a_line("a")), purpose="evals")
    batch = await ai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    failed = await ended(ai, batch)
    assert failed.errors is not None
    assert "purpose 'batch'" in ((failed.errors.data or [])[0].message or "")


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"endpoint": "/v1/invalid/endpoint"}, "endpoint", "invalid_value"),
        ({"endpoint": "/v1/models"}, "endpoint", "invalid_value"),
        ({"completion_window": "1h"}, "completion_window", "invalid_value"),
        ({"completion_window": ""}, "completion_window", "invalid_value"),
        ({"metadata": {"tags": ["a", "b"]}}, "metadata.tags", "invalid_type"),
        ({"metadata": {"a": None}}, "metadata.a", "invalid_type"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a", "invalid_value"),
        ({"metadata": {"a" * 65: "x"}}, f"metadata.{'a' * 64}", "invalid_value"),
        (
            {"output_expires_after": {"anchor": "now", "seconds": 4000}},
            "output_expires_after.anchor",
            "invalid_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 10}},
            "output_expires_after.seconds",
            "invalid_value",
        ),
    ],
    ids=str,
)
async def test_a_batch_with_an_invalid_parameter_is_refused(
    more: dict[str, Any], param: str, code: str, ai: openai.AsyncOpenAI
) -> None:
    plain: Any = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.batches.create(**(plain | more))
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")


@pytest.mark.parametrize("missing", ["input_file_id", "endpoint", "completion_window"])
async def test_a_batch_without_a_required_parameter_names_it(missing: str, server: Live) -> None:
    body = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    del body[missing]
    status, answer = await server.ask("POST", "/v1/batches", await server.token(), json=body)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, missing, "missing_required_parameter")


async def test_the_lifetime_of_the_output_can_be_chosen(ai: openai.AsyncOpenAI) -> None:
    lifetime: Any = {"anchor": "created_at", "seconds": 7200}
    done = await ended(ai, await created(ai, a_line("a"), output_expires_after=lifetime))
    output = await ai.files.retrieve(done.output_file_id or "")
    assert output.expires_at == output.created_at + 7200


async def test_batches_are_listed_in_pages_the_newest_first(ai: openai.AsyncOpenAI) -> None:
    ids = [
        (await ai.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")).id for _ in range(5)
    ]
    page = await ai.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == ([ids[4], ids[3]], True)
    assert [batch.id async for batch in ai.batches.list(limit=2)] == ids[::-1]
    assert [batch.id async for batch in ai.batches.list(after=ids[2])] == [ids[1], ids[0]]
    for limit in (0, 101):
        with pytest.raises(openai.BadRequestError):
            await ai.batches.list(limit=limit)


async def test_a_cancelled_batch_keeps_what_is_done(ai: openai.AsyncOpenAI, server: Live) -> None:
    await server.model("hangs", kind="echo", attempts=1)
    lines = [a_line(str(number), model="careful") for number in range(6)]
    batch = await created(ai, *lines)
    # given two lines that were signed off, and four that wait for a review
    held = await until(lambda: held_lines(server, batch.id, 6))
    for job_id in held[:2]:
        await decide(server.services, REVIEWER, job_id, VerdictRequest(verdict="approve"))

    async def two_done() -> bool | None:
        counts = (await ai.batches.retrieve(batch.id)).request_counts
        return True if counts is not None and counts.completed == 2 else None

    await until(two_done)
    cancelling = await ai.batches.cancel(batch.id)
    assert cancelling.status in {"cancelling", "cancelled"}
    assert cancelling.cancelling_at is not None
    done = await ended(ai, batch)
    assert (done.status, done.cancelled_at is not None) == ("cancelled", True)
    answers, errors = await results(ai, done.output_file_id), await results(ai, done.error_file_id)
    assert len(answers) == 2
    assert {error["error"]["code"] for error in errors} == {"batch_cancelled"}
    assert {line["custom_id"] for line in answers + errors} == {str(number) for number in range(6)}
    # and a repeated request returns the batch
    assert await ai.batches.cancel(batch.id) == done


async def held_lines(server: Live, batch_id: str, count: int) -> list[str] | None:
    """Return the ids of the held jobs of a batch, once there are `count`."""
    held = await server.services.store.jobs.list(JobFilter(status="human", limit=1000))
    ids = [job.id for job in held if job.batch_id == batch_id]
    return ids if len(ids) == count else None


async def test_a_batch_that_has_ended_cannot_be_cancelled(ai: openai.AsyncOpenAI) -> None:
    done = await ended(ai, await created(ai, a_line("a")))
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        await ai.batches.cancel(done.id)
    for call in (ai.batches.retrieve, ai.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No batch found with id 'batch-nonsense'"):
            await call("batch-nonsense")


async def test_a_batch_waits_for_held_lines_and_they_expire_with_its_window(
    ai: openai.AsyncOpenAI, server: Live
) -> None:
    batch = await created(ai, *(a_line(str(number), model="careful") for number in range(3)))
    [first, *_] = await until(lambda: held_lines(server, batch.id, 3))
    await decide(server.services, REVIEWER, first, VerdictRequest(verdict="approve"))

    async def is_counted() -> bool | None:
        present = await ai.batches.retrieve(batch.id)
        assert (present.status, present.output_file_id) == ("in_progress", None)
        return True if present.request_counts is not None and present.request_counts.completed == 1 else None

    await until(is_counted)
    await execute(server.services.store, sa.update(batches).where(batches.c.id == batch.id).values(expires_at=0))  # type: ignore[arg-type]
    done = await ended(ai, batch)
    assert (done.status, done.expired_at is not None) == ("expired", True)
    assert len(await results(ai, done.output_file_id)) == 1
    errors = await results(ai, done.error_file_id)
    assert {(error["error"]["code"], error["response"]) for error in errors} == {("batch_expired", None)}
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 3, "completed": 1, "failed": 2}
    # and a late verdict changes nothing
    assert await held_lines(server, batch.id, 0) == []


async def test_lines_that_were_never_submitted_expire_too(
    ai: openai.AsyncOpenAI, server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signoff.work.batches.submit.QUEUED_LINES", 2)
    lines = [a_line(str(number), model="echo/hang") for number in range(7)]
    batch = await created(ai, *lines)

    async def has_begun() -> bool | None:
        return True if (await ai.batches.retrieve(batch.id)).status == "in_progress" else None

    await until(has_begun)
    await execute(server.services.store, sa.update(batches).where(batches.c.id == batch.id).values(expires_at=0))  # type: ignore[arg-type]
    done = await ended(ai, batch)
    errors = await results(ai, done.error_file_id)
    assert [error["custom_id"] for error in errors] == [str(number) for number in range(7)]
    assert len({error["id"] for error in errors}) == 7
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 7, "completed": 0, "failed": 7}


async def test_a_batch_goes_on_with_the_contents_of_a_deleted_file(
    ai: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signoff.work.batches.submit.QUEUED_LINES", 2)
    lines = [a_line(str(number), model="echo/delay=0.05") for number in range(8)]
    batch = await created(ai, *lines)

    async def has_begun() -> bool | None:
        return True if (await ai.batches.retrieve(batch.id)).status != "validating" else None

    await until(has_begun)
    await ai.files.delete(batch.input_file_id)
    done = await ended(ai, batch)
    assert len(await results(ai, done.output_file_id)) == 8
    with pytest.raises(openai.NotFoundError):
        await ai.files.content(batch.input_file_id)


async def test_a_file_that_is_deleted_before_it_is_read_fails_the_batch(ai: openai.AsyncOpenAI) -> None:
    file_id = await uploaded(ai, as_file(a_line("a")))
    await ai.files.delete(file_id)
    batch = await ai.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert (await ended(ai, batch)).status == "failed"


async def test_an_idempotency_key_makes_one_batch(ai: openai.AsyncOpenAI) -> None:
    plain: Any = {"endpoint": CHAT, "completion_window": "24h", "extra_headers": {"Idempotency-Key": "mine"}}
    first = await ai.batches.create(input_file_id="file-x", metadata={"a": "1", "b": "2"}, **plain)
    again = await ai.batches.create(input_file_id="file-x", metadata={"b": "2", "a": "1"}, **plain)
    assert again.id == first.id
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        await ai.batches.create(input_file_id="file-y", **plain)
    assert caught.value.code == "idempotency_key_reused"


async def test_lines_use_the_response_cache(ai: openai.AsyncOpenAI) -> None:
    line = a_line("a", "the same question", temperature=0)
    first = await ended(ai, await created(ai, line))
    second = await ended(ai, await created(ai, line))
    [one], [two] = await results(ai, first.output_file_id), await results(ai, second.output_file_id)
    assert one["response"]["body"] == two["response"]["body"]
    assert one["response"]["request_id"] != two["response"]["request_id"]
    assert second.usage is not None
    assert second.usage.total_tokens == 0


@pytest.mark.parametrize(
    ("route", "allow"),
    [
        ("PUT /v1/files", "GET, HEAD, POST"),
        ("POST /v1/files/file-x", "DELETE, GET, HEAD"),
        ("DELETE /v1/files/file-x/content", "GET, HEAD"),
        ("DELETE /v1/batches", "GET, HEAD, POST"),
        ("DELETE /v1/batches/batch_x", "GET, HEAD"),
        ("GET /v1/batches/batch_x/cancel", "POST"),
    ],
)
async def test_a_wrong_method_names_the_right_ones(route: str, allow: str, server: Live) -> None:
    method, path = route.split()
    for prefix in ("", "/openai"):
        headers = {"authorization": f"Bearer {await server.token()}"}
        async with server.http.request(method, server.url + prefix + path, headers=headers) as response:
            assert (response.status, response.headers["allow"]) == (405, allow)
            assert (await response.json())["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("route", ["GET /v1/files", "POST /v1/files", "GET /v1/batches", "POST /v1/batches"])
async def test_a_caller_without_a_token_is_refused_first(route: str, server: Live) -> None:
    method, path = route.split()
    async with server.http.request(method, server.url + path, data=b"{") as response:
        assert response.status == 401
        assert (await response.json())["error"]["code"] == "invalid_api_key"


async def test_the_answer_of_the_desk_is_in_the_output(ai: openai.AsyncOpenAI, server: Live) -> None:
    batch = await created(ai, a_line("a", "secret", model="careful"))
    [job_id] = await until(lambda: held_lines(server, batch.id, 1))
    await decide(server.services, REVIEWER, job_id, VerdictRequest(verdict="reject", reason="No."))
    done = await ended(ai, batch)
    [error] = await results(ai, done.error_file_id)
    assert error["response"]["status_code"] == 403
    assert error["response"]["body"]["error"]["code"] == "rejected"
    assert "secret" not in json.dumps(error)


async def test_a_user_is_erased_with_their_files_and_batches(tmp_path: Path) -> None:
    async with live(tmp_path) as server, new_user(server) as ai:
        done = await ended(ai, await created(ai, a_line("a")))
        running = await created(ai, a_line("b", model="echo/hang"))
        assert list((tmp_path / "data" / "blobs" / "files").iterdir())
        user_id = (await server.services.store.batches.get(done.id)).user_id  # type: ignore[union-attr]
        admin = await server.token("admin")
        status, _ = await server.ask("DELETE", f"/api/users/{user_id}?erase=true", admin)
        assert status in {200, 202, 204}

        async def is_gone() -> bool | None:
            left = list((tmp_path / "data" / "blobs" / "files").iterdir())
            batches_left = [await server.services.store.batches.get(each.id) for each in (done, running)]
            jobs = await server.services.store.jobs.list(JobFilter(user_id=user_id))
            return True if not left and batches_left == [None, None] and not jobs else None

        await until(is_gone)


async def test_an_upload_whose_client_leaves_is_discarded(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, folder = await server.token(), tmp_path / "data" / "blobs"
        head = (
            f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 9000000\r\n"
            "content-type: multipart/form-data; boundary=b\r\n\r\n"
            '--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        )
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + b"x" * 2_000_000)

        async def rows() -> int:
            table = await server.services.store._database.read(  # type: ignore[attr-defined]
                lambda conn, _: conn.execute(sa.select(sa.func.count()).select_from(files)).scalar_one()
            )
            return int(table)

        async def has_begun() -> bool | None:
            return await rows() == 1 or None

        async def is_discarded() -> bool | None:
            return (await rows() == 0 and not [each for each in folder.rglob("*") if each.is_file()]) or None

        await until(has_begun)
        writer.close()
        await until(is_discarded)


@pytest.mark.long
async def test_files_and_batches_are_kept_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_url(monkeypatch) as url:
        async with live(tmp_path, blob_url=url) as server, new_user(server) as ai:
            lines = [a_line(str(number), "x" * 1000) for number in range(1000)]
            done = await ended(ai, await created(ai, *lines))
            assert [line["custom_id"] for line in await results(ai, done.output_file_id)] == [
                str(number) for number in range(1000)
            ]
            await ai.files.delete(done.output_file_id or "")
            assert not (tmp_path / "data" / "blobs").exists()


async def test_a_start_deletes_what_killed_uploads_have_left(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "blobs" / "files"
    folder.mkdir(parents=True)
    for name in ("file-old#1", "file-new#1"):
        (folder / name).write_bytes(b"x")
    os.utime(folder / "file-old#1", (0, 0))
    async with live(tmp_path):

        async def is_clean() -> bool | None:
            return [path.name for path in folder.iterdir()] == ["file-new#1"] or None

        await until(is_clean)
