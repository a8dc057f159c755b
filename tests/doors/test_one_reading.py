"""Requests that name one model to Signoff and could name another one to the upstream: every door refuses them."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from fakes.upstream import fake_upstream
from support.live_server import Live, live

pytestmark = pytest.mark.anyio

CHAT = '{"messages":[{"role":"user","content":"hi"}],%s}'
BODIES = [
    CHAT % '"model":"free","model":"held"',
    CHAT % '"model":"free","Model":"held"',
    CHAT % '"model":"free","mod\\u0065l":"held"',
    CHAT % '"model":"free","stream":false,"\u017ftream":true',
]
FORM_TYPE = "multipart/form-data; boundary=XX"
FORM = '--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FORMS = [
    (
        "multipart/form-data; boundary=XX",
        FORM % ("XX", "model", "free") + FORM % ("XX", "model", "held") + "--XX--\r\n",
    ),
    (
        "multipart/form-data; boundary=XX",
        FORM % ("XX", "model", "free") + FORM % ("XX", "Model", "held") + "--XX--\r\n",
    ),
    (
        "multipart/form-data; xboundary=YY; boundary=XX",
        FORM % ("YY", "model", "held") + "--YY--\r\n" + FORM % ("XX", "model", "free") + "--XX--\r\n",
    ),
    (FORM_TYPE, "preamble\r\n" + FORM % ("XX", "model", "free") + "--XX--\r\n"),
]


async def send(server: Live, token: str, path: str, body: str, kind: str = "application/json") -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {token}", "content-type": kind}
    url = URL(server.url + path, encoded=True)
    async with server.http.post(url, data=body.encode(), headers=headers) as response:
        return response.status, await response.json()


async def test_a_request_that_parsers_read_differently_reaches_no_upstream(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("free", kind="openai", url=fake.at("answer"), default=True)
        await server.model("held", kind="openai", url=fake.at("answer"), review="always")
        token = await server.token()
        answers = [await send(server, token, "/v1/chat/completions", body) for body in BODIES]
        # and as the body of a queued job
        for body in BODIES:
            job = f'{{"model":"free","path":"/v1/chat/completions","body":{body}}}'
            answers.append(await send(server, token, "/api/jobs", job.replace('"model":"free","path"', '"path"')))
        for kind, form in FORMS:
            answers.append(await send(server, token, "/v1/audio/transcriptions", form, kind))
            encoded = base64.b64encode(form.encode()).decode()
            binary = f'{{"parcel":{{"content_type":"{kind}","content":"{encoded}"}}}}'
            job = f'{{"path":"/v1/audio/transcriptions","body":{binary}}}'
            answers.append(await send(server, token, "/api/jobs", job))
        queries = ("model=free&model=held", "Model=held", "%6dodel=free&model=held", "MODEL=held&model=free")
        answers += [await send(server, token, f"/v1/audio/speech?{query}", '{"input":"hi"}') for query in queries]
        answers.append(await send(server, token, "/v1/audio/speech%3Fmodel=held", '{"model":"free"}'))
        assert [(status, answer) for status, answer in answers if status != 400] == []
        assert not fake.requests


async def test_the_model_of_the_query_never_reaches_the_upstream_beside_another_one(tmp_path: Path) -> None:
    async with fake_upstream() as fake, live(tmp_path) as server:
        await server.model("free", kind="openai", url=fake.at("mirror"))
        headers = {"authorization": f"Bearer {await server.token()}", "x-signoff-model": "free"}
        url = f"{server.url}/v1/audio/speech?model=held&limit=1"
        async with server.http.post(url, json={"input": "hi"}, headers=headers) as response:
            assert response.status == 200
        assert [request.path for request in fake.requests] == ["/mirror/v1/audio/speech?limit=1"]


@pytest.mark.parametrize(
    "name", ["Host", "Authorization", "x-api-key", "api-key", "x-signoff-model", "Idempotency-Key", "Content-Type"]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/enqueue", "/api/prompts", "/v1/batches"])
async def test_a_second_header_that_parsers_read_differently_is_refused(name: str, path: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        url, token = URL(server.url), await server.token()
        values = {"host": "here", "authorization": f"Bearer {token}", "content-type": "application/json"}
        value = values.pop(name.lower(), token if "key" in name else "echo")
        lines = [f"{name}: {value}", *(f"{each}: {value}" for each, value in values.items()), f"{name}: other"]
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write("\r\n".join([f"POST {path} HTTP/1.1", *lines, "Content-Length: 2", "", "{}"]).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read(1000)
        writer.close()
        assert (head.split()[1], name.lower() in str(body)) == (b"400", True), body
