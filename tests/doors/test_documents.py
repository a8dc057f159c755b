"""The examples of the five documents that this product was asked for, pasted in order, one after the other.

Only the address, the port, ids and a token differ from the documents.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from contracts.test_transport import EXAMPLE, listening
from fakes.topic_clients import RabbitClient
from fakes.upstream import fake_upstream
from signoff.work.admin.people import create_user
from support.live_server import Live, live, words

pytestmark = pytest.mark.anyio

FORM = {"content-type": "application/x-www-form-urlencoded"}  # as curl sends it with -d
JSON = {"content-type": "application/json"}
EMAIL, PASSWORD = "ann@example.org", "correct horse battery"
QUESTION = b"""{
    "model": "gpt-3.5-turbo-1106",
    "messages": [{"role": "user", "content": "Is blue a color for blind?"}]
}"""
GENERATE = b"""{
"job_id": "12345",
"meta": {
"temperature": 0.5,
"tokens_limit": 1000,
"stop_words": ["stop"],
"model": "gpt-model"
},
"content": "What is AI?"
}"""
CHAT = b"""{
"job_id": "12345",
"meta": {
"temperature": 0.5,
"tokens_limit": 1000,
"stop_words": ["stop"],
"model": "gpt-model"
},
"messages": [
{"role": "user", "content": "What is AI?"},
{"role": "assistant", "content": "Artificial Intelligence is..."}
]
}"""


async def test_the_examples_of_all_documents_work_in_order_on_the_defaults(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await run_examples(server)


async def test_the_examples_of_all_documents_work_in_order_on_services(
    tmp_path: Path, postgres_url: str, rabbitmq_url: str, redis_url: str, prefix: str
) -> None:
    topics = RabbitClient(rabbitmq_url, prefix)
    stream = {"name": "s", "url": topics.url, "requests": topics.requests, "responses": topics.responses}
    urls = {"database_url": postgres_url, "amqp_url": rabbitmq_url, "redis_url": redis_url}
    names = {"queue_name": f"{prefix}queue", "redis_prefix": prefix}
    async with topics.connected(), live(tmp_path, **urls, **names, streams=[stream]) as server:
        await run_examples(server)
        await listening(server)
        await server.model("my-model")
        await topics.send(EXAMPLE)
        answer = (await topics.get()).body
        assert (answer["status_code"], answer["metadata"]) == (200, {"key": "val"})


async def run_examples(server: Live) -> None:
    """Run the examples of the documents for HTTP."""
    for model in ("gpt-3.5-turbo-1106", "gpt-model"):
        await server.model(model)
    await server.model("default", default=True)
    admin = await create_user(server.services, EMAIL, "admin", PASSWORD)
    token = await server.token("admin", admin.email)
    await run_middleware(server, token)
    async with fake_upstream() as upstream:
        await run_backend(server, token, upstream.at("answer"))
    await run_watchful_eye(server, token)
    await run_queue(server, token)


async def send(server: Live, method: str, path: str, token: str | None, body: bytes = b"", **headers: str) -> Any:
    """Send a request as it is written, and return the JSON of its answer, whose status must be a success."""
    authorization = {} if token is None else {"authorization": f"Bearer {token}"}
    url = URL(server.url + path, encoded=True)
    async with server.http.request(method, url, data=body, headers=authorization | headers) as response:
        text = await response.text()
        assert response.status in {200, 201}, (path, text)
        return json.loads(text)


async def run_middleware(server: Live, token: str) -> None:
    """Run the examples of the human-in-the-loop middleware."""
    queued = await send(server, "POST", "/enqueue", token, b'{ "input": "What is 2 + 2?" }', **FORM)
    await server.job_when(token, queued["job_id"], lambda job: job["status"] == "human")
    [held] = await send(server, "GET", "/jobs?offset=0&limit=50&status=human", token)
    assert (held["job_id"], held["payload"]) == (queued["job_id"], {"input": "What is 2 + 2?"})
    verdict = f'{{ "id": "{queued["job_id"]}", "status": "success" }}'.encode()
    await send(server, "POST", "/reviewJob", token, verdict, **FORM)
    job = await send(server, "GET", f"/job?id={queued['job_id']}", token)
    assert [*job][:5] == ["job_id", "status", "payload", "response", "created_at"]
    assert (job["status"], words(job["response"])) == ("success", "What is 2 + 2?")


async def run_backend(server: Live, token: str, url: str) -> None:
    """Run the examples of the AI backend."""
    destination = url.removeprefix("http://")
    await send(server, "POST", f'/post/addmodel?id=myverygoodmodel?type=httpmodel?dest="{destination}"', token)
    assert await send(server, "POST", "/post/predict?id=myverygoodmodel", token, b'{"n": 1}', **JSON)
    assert await send(server, "POST", "/post/getlogs?id=myverygoodmodel", token) == []
    await send(server, "POST", "/post/cleanlogs?id=myverygoodmodel", token)


async def run_watchful_eye(server: Live, token: str) -> None:
    """Run the examples of the OpenAI cache and of the pipelines."""
    text = "Is blue a color for blind?"
    for is_hit in (False, True):
        answer = await send(server, "POST", "/api/openai/v1/chat/completions/", token, QUESTION, **JSON)
        assert answer == {"response": text, "cache_hit": is_hit}
    cached = await send(server, "POST", "/api/cache/v1/chat/completions/", token, QUESTION, **JSON)
    assert cached == [{"response": text, "cache_hit": True}]

    await send(server, "POST", "/api/functions/sync", token)
    pipeline = await send(server, "POST", "/api/pipelines", token, b'{"name": "my_pipeline", "body": "identity(s)"}')
    key = await send(server, "POST", "/api/keys", token, b'{"name": "mine", "key": "sk-test"}')
    call = {"pipeline_id": pipeline["id"], "args": {"s": "abc"}}
    expected = {"success": True, "response": "abc"}
    assert await send(server, "POST", "/api/pipeline/call", token, json.dumps(call).encode(), **JSON) == expected
    # with a session instead of a token
    sign_in = {"email": EMAIL, "password": PASSWORD}
    async with server.http.post(f"{server.url}/api/session", json=sign_in) as response:
        session = response.cookies["signoff_session"].value
    cookies = {"cookie": f"csrftoken=g69kAjkZan6yAGqD5VOGCUjbUdR1qPka; signoff_session={session}"}
    arguments = await send(server, "GET", "/api/pipeline/args?pipeline_name=my_pipeline", None, **cookies)
    assert arguments == {"success": True, "response": ["s"]}
    headers = JSON | cookies | {"x-csrftoken": "g69kAjkZan6yAGqD5VOGCUjbUdR1qPka"}
    with_key = json.dumps(call | {"openaikey_id": key["id"]}).encode()
    assert await send(server, "POST", "/api/pipeline/call", None, with_key, **headers) == expected


async def run_queue(server: Live, token: str) -> None:
    """Run the examples of the queue on RabbitMQ and Redis."""
    assert await send(server, "POST", "/generate", token, GENERATE, **JSON) == {"content": "What is AI?"}
    assert await send(server, "POST", "/chat_completion", token, CHAT, **JSON) == {"content": "What is AI?"}
    status = await send(server, "GET", "/check_status?job_id=12345", token)
    assert (status["job_status"], status["content"]) == ("completed", "What is AI?")
