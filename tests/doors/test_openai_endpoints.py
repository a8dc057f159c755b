"""Endpoints of the OpenAI door, driven by the official client: supported ones and ones that pass through."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from fakes.behaviours import ANSWER, MESSAGE, ROWS, SOUND
from fakes.upstream import fake_upstream
from signoff.core.access import Caller
from signoff.core.binary import decode_binary
from signoff.core.dialects.answer import with_text
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job
from signoff.core.reviews.policy import Review
from signoff.work.reviews.desk import VerdictRequest, decide
from support.live_server import Live, client, live, until

pytestmark = pytest.mark.anyio
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")


async def test_completions_plain_and_streamed(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        whole = await ai.completions.create(model="echo", prompt="once upon a time")
        assert whole.choices[0].text == "once upon a time"
        stream = await ai.completions.create(model="echo", prompt="once upon a time", stream=True)
        pieces = [piece async for piece in stream]
        assert len(pieces) > 3
        assert "".join(piece.choices[0].text for piece in pieces) == "once upon a time"


async def test_responses_plain_streamed_and_with_the_stream_helper_of_the_client(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        request = {"model": "echo", "input": [{"role": "user", "content": "once upon a time"}]}
        whole = await ai.responses.create(**request)
        assert (whole.output_text, whole.usage.input_tokens, whole.usage.output_tokens) == ("once upon a time", 4, 4)
        events = [event async for event in await ai.responses.create(**request, stream=True)]
        assert (
            "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
        )
        assert [event.sequence_number for event in events] == list(range(len(events)))
        async with ai.responses.stream(**request) as stream:
            assert (await stream.get_final_response()).output_text == whole.output_text
        for job in await ended_jobs(server, 3):
            assert job.usage is not None
            assert (job.status, job.usage.total_tokens) == ("success", 8)
            assert json.loads(job.response or b"")["output"][0]["content"][0]["text"] == "once upon a time"


async def test_embeddings_are_the_same_for_the_same_text_in_both_formats(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        by_default = await ai.embeddings.create(model="echo", input=["one", "two", "one"])
        vectors = [each.embedding for each in by_default.data]
        assert vectors[0] == vectors[2] != vectors[1]
        assert sum(number * number for number in vectors[0]) == pytest.approx(1, abs=1e-5)
        floats = await ai.embeddings.create(model="echo", input="one", encoding_format="float")
        assert floats.data[0].embedding == pytest.approx(vectors[0])
        long = await ai.embeddings.create(model="echo", input=[[1, 2], [3]], dimensions=256)
        assert [len(each.embedding) for each in long.data] == [256, 256]


async def test_moderations_and_ranks(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as ai:
        moderated = await ai.moderations.create(model="echo", input=["one", "two"])
        assert [each.flagged for each in moderated.results] == [False, False]
        body = {
            "model": "echo",
            "query": "blue sky",
            "documents": ["a red sea", {"text": "the sky is blue"}],
            "top_n": 1,
        }
        token = await server.token()
        for path in ("/v1/rerank", "/v2/rerank", "/v2/rerank/", "/v2//rerank", "/v2/rerank?a=b", "/v2/rerank/?a=b"):
            _, ranked = await server.ask("POST", path, token, json=body)
            assert [(each["index"], each["relevance_score"]) for each in ranked["results"]] == [(1, 1.0)]
        # its errors have the format of this API
        assert (await server.ask("POST", "/v2/rerank", token, json={}))[1]["error"]["param"]
        assert (await server.ask("POST", "/v2/rerank/", token, json={}))[1]["error"]["param"]
        assert (await server.ask("POST", "/v2/rerank", json=body))[0] == 401
        assert (await server.ask("GET", "/v2/rerank", token))[0] == 405
        for path in ("/v2/reranks", "/v2/rerank/more"):
            assert (await server.ask("POST", path, token, json=body))[0] == 404


async def test_structured_output_is_parsed_by_the_client(tmp_path: Path) -> None:
    class Weather(pydantic.BaseModel):
        city: str
        degrees: float

    async with live(tmp_path) as server, client(server) as ai:
        messages = [{"role": "user", "content": '{"city": "Köln", "degrees": 21.5}'}]
        answer = await ai.chat.completions.parse(model="echo", messages=messages, response_format=Weather)
        assert answer.choices[0].message.parsed == Weather(city="Köln", degrees=21.5)
        response = await ai.responses.parse(model="echo", input=messages, text_format=Weather)
        assert response.output_parsed == Weather(city="Köln", degrees=21.5)


async def test_the_official_sync_client_works_at_every_endpoint(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()

        def ask() -> list[Any]:
            with openai.OpenAI(base_url=server.url + "/openai/v1", api_key=token) as ai:
                return [
                    ai.completions.create(model="echo", prompt="hello").choices[0].text,
                    "".join(
                        piece.choices[0].text
                        for piece in ai.completions.create(model="echo", prompt="a b", stream=True)
                    ),
                    ai.responses.create(model="echo", input="hello").output_text,
                    [event.type for event in ai.responses.create(model="echo", input="a", stream=True)][-1],
                    len(ai.embeddings.create(model="echo", input="hello").data),
                    ai.moderations.create(input="hello", model="echo").results[0].flagged,
                ]

        assert await asyncio.to_thread(ask) == ["hello", "a b", "hello", "response.completed", 1, False]


@pytest.mark.parametrize("kind", ["echo", "openai"])
async def test_an_edit_becomes_a_chat_if_its_model_has_no_edits_endpoint(kind: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("editor", kind=kind, url=fake.at("no-edits"))
        edit = {"model": "editor", "instruction": "Shout.", "input": "hello", "temperature": 0.25}
        status, response = await server.ask("POST", "/v1/edits", await server.token(), json=edit)
        text = "hello" if kind == "echo" else "café café"
        assert (status, response["object"], response["choices"]) == (200, "edit", [{"text": text, "index": 0}])
        (job,) = await ended_jobs(server, 1)
        assert (job.path, json.loads(job.body)) == ("/v1/edits", edit)
        if kind == "openai":
            body = json.loads(fake.requests[-1].body)
            assert [message["content"] for message in body.pop("messages")] == ["Shout.", "hello"]
            assert body == {"model": "editor", "temperature": 0.25}


async def test_an_edit_goes_to_the_edits_endpoint_of_its_model_if_there_is_one(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("editor", kind="openai", url=fake.at("answer"))
        edit = {"model": "editor", "instruction": "Shout.", "input": "hello"}
        await server.ask("POST", "/v1/edits", await server.token(), json=edit)
        assert [request.path for request in fake.requests] == ["/answer/v1/edits"]


@pytest.mark.parametrize("body", ["[]", "null", '{"instruction": 5}'])
async def test_an_invalid_edit_is_refused(body: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        status, response = await server.ask("POST", "/v1/edits", await server.token(), data=body)
        assert status == 400
        assert response["error"]["code"] == "bad_request"


ENDPOINTS = ["completions", "embeddings", "responses", "moderations", "rerank", "edits", "images/generations"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_bodies_and_answers_pass_byte_for_byte(endpoint: str, tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("answer"))
        required = b'"instruction": "", "prompt": "", "query": "", "documents": []'
        body = b'{ "new" : [1.50, 1e3], "model":"mine", ' + required
        body += b', "input":"caf\\u00e9 caf\xc3\xa9", "x": null}\n'
        token = await server.token()
        headers = {"authorization": f"Bearer {token}"}
        async with server.http.post(f"{server.url}/v1/{endpoint}", data=body, headers=headers) as response:
            assert (response.status, await response.read()) == (200, ANSWER)
        assert (fake.requests[0].path, fake.requests[0].body) == (f"/answer/v1/{endpoint}", body)
        (job,) = await ended_jobs(server, 1)
        assert (job.path, job.body, job.response) == (f"/v1/{endpoint}", body, ANSWER)


async def test_a_form_with_a_file_passes_byte_for_byte_and_is_logged(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server) as ai:
        await server.model("ears", kind="openai", url=fake.at("transcript"))
        answer = await ai.audio.transcriptions.create(file=("a.wav", SOUND), model="ears")
        assert answer.text == "hello"
        (request,) = fake.requests
        assert request.path == "/transcript/v1/audio/transcriptions"
        assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert SOUND in request.body
        (job,) = await ended_jobs(server, 1)
        binary = decode_binary(job.body)
        assert binary is not None
        assert (binary.content_type, binary.content) == (request.headers["content-type"], request.body)
        assert (job.status, job.target, job.response) == ("success", "ears", b'{ "text":"hello" }')


async def test_a_form_names_the_model_as_its_upstream_does(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server) as ai:
        await server.model("ears", kind="openai", url=fake.at("transcript"), upstream_model="whisper-1")
        await ai.audio.transcriptions.create(file=("a.wav", b"ears"), model="ears")
        assert b'name="model"\r\n\r\nwhisper-1\r\n--' in fake.requests[0].body
        assert b"ears\r\n--" in fake.requests[0].body


async def test_audio_passes_byte_for_byte_and_is_logged(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server) as ai:
        await server.model("mouth", kind="openai", url=fake.at("speech"))
        answer = await ai.audio.speech.create(model="mouth", voice="alloy", input="hello")
        assert answer.content == SOUND
        assert answer.response.headers["content-type"] == "audio/mpeg"
        (job,) = await ended_jobs(server, 1)
        binary = json.loads(job.response or b"")["parcel"]
        assert (binary["content_type"], base64.b64decode(binary["content"])) == ("audio/mpeg", SOUND)


@pytest.mark.parametrize("review", [None, "always"])
async def test_a_stream_in_another_format_passes_byte_for_byte_and_is_logged(
    review: Review | None, tmp_path: Path
) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("message"), review=review)
        call = asyncio.ensure_future(read_stream(server, "/v1/audio/speech"))
        if review:
            job = await until(lambda: held(server))
            await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve"))
        assert await call == ("text/event-stream", b"".join(MESSAGE))
        (job,) = await ended_jobs(server, 1)
        binary = decode_binary(job.response or b"")
        assert binary is not None
        assert (binary.content_type, binary.content) == ("text/event-stream", b"".join(MESSAGE))
        assert (job.status, job.completion_tokens) == ("success", 2)


async def read_stream(server: Live, path: str) -> tuple[str, bytes]:
    """Return the content type of a streamed answer, and its bytes without the comments."""
    headers = {"authorization": f"Bearer {await server.token()}"}
    body = {"model": "mine", "stream": True}
    async with server.http.post(server.url + path, json=body, headers=headers) as response:
        assert response.status == 200
        events = (await response.read()).split(b"\n\n")
        return response.content_type, b"\n\n".join(event for event in events if not event.startswith(b":"))


async def test_json_lines_pass_byte_for_byte(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("rows"), routes=("rows",))
        assert await read_stream(server, "/v1/rows") == ("application/x-ndjson", ROWS)


async def test_an_html_page_from_a_model_is_sandboxed(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("web", kind="openai", url=fake.at("html"), routes=("*",))
        headers = {"authorization": f"Bearer {await server.token()}"}
        async with server.http.post(f"{server.url}/v1/page", json={"model": "web"}, headers=headers) as response:
            assert (response.status, response.content_type) == (200, "text/html")
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["content-security-policy"].startswith("sandbox")


async def test_a_body_that_looks_like_a_binary_envelope_passes_byte_for_byte(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=fake.at("mirror"))
        body = b'{"parcel":{"content_type":"text/html","content":"PGI+"},"model":"mine","input":"x"}'
        headers = {"authorization": f"Bearer {await server.token()}"}
        async with server.http.post(f"{server.url}/v1/embeddings", data=body, headers=headers) as response:
            assert (response.content_type, await response.read()) == ("application/json", body)
        assert fake.requests[0].body == body


async def test_an_answer_that_is_not_json_is_an_error_at_a_json_endpoint(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server, client(server, max_retries=0) as ai:
        await server.model("mouth", kind="openai", url=fake.at("speech"))
        with pytest.raises(openai.InternalServerError) as caught:
            await ai.embeddings.create(model="mouth", input="hello")
        assert caught.value.code == "model_garbled"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *((path, b" 404 ") for path in ["uploads", "files/x/y", "batches/x/y/z", "a.b", "../admin", "%2e%2e/admin"]),
        ("models", b" 405 "),
        ("nowhere", b" 403 "),  # an upstream might have it, for admins
    ],
)
async def test_an_unknown_path_is_not_found_and_a_known_one_refuses_other_methods(
    path: str, expected: bytes, tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {await server.token()}\r\n"
        writer.write(f"{head}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
        answer = await reader.read()
        writer.close()
        assert expected in answer.splitlines()[0]
        assert b'"error":' in answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["completions", "responses"])
@pytest.mark.parametrize("bare", [False, True])
async def test_a_held_answer_is_read_with_its_edit(endpoint: str, stream: bool, bare: bool, tmp_path: Path) -> None:
    async with live(tmp_path, keep_alive_seconds=0.05) as server, client(server) as ai:
        await server.model("careful", review="always")
        call = asyncio.ensure_future(answer_text(ai, endpoint, stream))
        job = await until(lambda: held(server))
        edited = json.dumps("signed off") if bare else with_text(job.response or b"", "signed off").decode()
        await decide(server.services, REVIEWER, job.id, VerdictRequest(verdict="approve", edit=Edit(response=edited)))
        assert await call == "signed off"


async def answer_text(ai: Any, endpoint: str, stream: bool) -> str:
    if endpoint == "completions":
        answer = await ai.completions.create(model="careful", prompt="secret", stream=stream)
        return "".join([piece.choices[0].text async for piece in answer]) if stream else answer.choices[0].text
    if stream:
        async with ai.responses.stream(model="careful", input="secret") as events:
            return (await events.get_final_response()).output_text
    return (await ai.responses.create(model="careful", input="secret")).output_text


async def held(server: Live) -> Job | None:
    jobs = await server.services.store.jobs.list(JobFilter(status="human"))
    return jobs[0] if jobs else None


async def ended_jobs(server: Live, count: int) -> list[Job]:
    """Wait until there are `count` jobs and all have ended; return them."""

    async def all_ended() -> list[Job] | None:
        jobs = await server.services.store.jobs.list(JobFilter())
        return jobs if len(jobs) == count and all(job.is_terminal for job in jobs) else None

    return await until(all_ended)
