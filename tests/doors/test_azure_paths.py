"""Paths of Azure OpenAI, with the official client and without."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest

from fakes.http_server import RecordedRequest, Reply, json_reply
from fakes.upstream import fake_upstream
from support.live_server import chat, live

pytestmark = pytest.mark.anyio
VERSION = "api-version=2024-10-21"


async def test_the_client_of_azure_gets_answers_streams_and_vectors(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()

        def ask() -> tuple[str | None, str, int, str]:
            with openai.AzureOpenAI(azure_endpoint=server.url, api_key=token, api_version="2024-10-21") as ai:
                whole = ai.chat.completions.create(**chat("hello"))
                stream = ai.chat.completions.create(**chat("one two", stream=True))
                text = "".join(piece.choices[0].delta.content or "" for piece in stream)
                vectors = ai.embeddings.create(model="echo", input=["a", "b"])
                response = ai.responses.create(model="echo", input="three")
                return whole.choices[0].message.content, text, len(vectors.data), response.output_text

        assert await asyncio.to_thread(ask) == ("hello", "one two", 2, "three")


async def test_the_deployment_of_the_path_is_the_model_whatever_the_body_says(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("org/mine")
        token = await server.token()
        path = f"/openai/deployments/org/mine/chat/completions?{VERSION}"
        for body in (chat("hello"), {"messages": chat("hello")["messages"]}, chat("hello") | {"model": "nowhere"}):
            status, answer = await server.ask("POST", path, token, json=body)
            assert (status, answer["model"]) == (200, "org/mine")


async def test_a_deployment_that_is_no_model_is_404_and_a_wrong_method_405(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        for method, path, expected in (
            ("POST", "/openai/deployments/nowhere/chat/completions", 404),
            ("GET", "/openai/deployments/echo/chat/completions", 405),
            ("POST", "/openai/deployments/echo", 404),
            ("POST", "/openai/deployments/echo/nowhere", 404),
            ("POST", "/openai/deployments//chat/completions", 404),
        ):
            status, answer = await server.ask(method, f"{path}?{VERSION}", token, json=chat("hello"))
            assert (status, set(answer)) == (expected, {"error"}), path
        assert (await server.ask("POST", "/openai/deployments/echo/chat/completions", json=chat("hello")))[0] == 401


async def test_the_version_of_azures_api_does_not_reach_an_upstream(tmp_path: Path) -> None:
    async def picture(_: RecordedRequest) -> Reply:
        return json_reply({"created": 1, "data": []})

    async with fake_upstream(picture) as upstream, live(tmp_path) as server:
        await server.model("mine", kind="openai", url=upstream.url)
        body = {"prompt": "a tree"}
        path = f"/openai/deployments/mine/images/generations?{VERSION}"
        assert (await server.ask("POST", path, await server.token(), json=body))[0] == 200
        assert upstream.requests[-1].path == "/v1/images/generations"
        assert upstream.requests[-1].json()["prompt"] == "a tree"
