"""The hold at every way out: cache, equal and repeated requests, batches, runs, topics, webhooks, waits and streams.

No text that a person or a policy has not let pass reaches anybody who may not review. After an edit, only the edited
text does. `test_hold.py` is about what an upstream remembers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import openai
import pytest

from contracts.test_transport import listening, request_message
from fakes.http_server import RecordedRequest, Reply
from fakes.numbering import NumberingModel
from fakes.topic_clients import RedisClient
from fakes.webhook_receiver import SECRET, WebhookReceiver
from signoff.core.access import Caller
from signoff.core.filters import JobFilter
from signoff.core.job import Edit, Job, Verdict
from signoff.errors import Stale
from signoff.work.reviews.desk import VerdictRequest, decide
from support.batches import a_line, as_file, uploaded
from support.live_server import Live, chat, live

pytestmark = [pytest.mark.anyio, pytest.mark.law]
REVIEWER = Caller(user_id=99, token_id=99, role="reviewer", email="rita@example.com")
STEPS = 50
# Rounds after the steps, until something has come out at each way out.
MAX_ROUNDS = 500
MODELS = ["free", "held", "held", "judged", "judged", "audited"]
PASSED, HELD, REJECTED = "012", "3456", "789"
# No caller asks the model `steps` by itself, and the results of its run are held.
PIPELINES = {
    "held_step": "identity(of_held())",
    "mixed_steps": "concat(of_judged(), of_free())",
    "held_result": "identity(of_steps())",
}
BUDGET = {"answers": 400, "share": 0.5, "audit_rate": 0.5}
WAYS_OUT = {"answer", "stream", "cache", "key", "batch", "run", "topic", "webhook", "job", "wait"}


def seeds(number: int) -> list[Any]:
    """Return that many seeds, of which `make test` takes one."""
    return [seed if seed < 1 else pytest.param(seed, marks=pytest.mark.long) for seed in range(number)]


class SecretModel(NumberingModel):
    """A model each of whose answers has a secret of its own, which one event of a stream has as a whole."""

    def __init__(self) -> None:
        super().__init__("secret")
        self.padding = 40
        self.models = dict[str, str]()
        """Model that was asked, by the secret in its answer."""

    async def reply(self, request: RecordedRequest) -> Reply:
        self.models[f"secret {request.number}"] = request.json()["model"]
        return await super().reply(request)


def secrets_in(text: str) -> set[str]:
    """Return the secrets in a text."""
    return {*re.findall(r"secret \d+", text)}


class CheckingReceiver(WebhookReceiver):
    """A receiver of webhooks that checks each when it arrives."""

    story: Story

    async def reply(self, request: RecordedRequest) -> Reply:
        await self.story.check("webhook", request.body.decode())
        return await super().reply(request)


class Story:
    """A random sequence of requests of two users at all doors, and of verdicts."""

    def __init__(self, server: Live, upstream: SecretModel, hook: CheckingReceiver, wire: RedisClient) -> None:
        self.server, self.upstream, self.hook, self.wire = server, upstream, hook, wire
        self.tokens = list[str]()
        self.random = Random()
        self.signed = set[str]()
        self.leaks = list[tuple[str, set[str]]]()
        self.seen = Counter[str]()
        self.jobs = list[tuple[str, str]]()
        self.batches = list[tuple[openai.AsyncOpenAI, str]]()
        self.waits = set[asyncio.Task[None]]()

    # The law

    async def check(self, way: str, text: str) -> None:
        """Check that everybody may read a text, which has left by `way`."""
        secrets = secrets_in(text)
        self.seen += Counter({way: len(secrets)})
        if leaked := secrets - self.signed - await self.passed():
            self.leaks.append((way, leaked))

    async def passed(self) -> set[str]:
        """Return the secrets that a model without a review has told, or that a rule or a coin let pass."""
        answers = self.upstream.models.items()
        passed = {
            secret for secret, model in answers if model == "free" or (model == "judged" and secret[-1] in PASSED)
        }
        for job in await self.stored():
            if job.model == "audited" and job.status == "success" and job.ruling and job.ruling.outcome == "pass":
                passed |= secrets_in((job.response or b"").decode())
        return passed

    async def stored(self) -> list[Job]:
        return await self.server.services.store.jobs.list(JobFilter(limit=1000))

    # Requests

    def request(self) -> tuple[str, dict[str, Any]]:
        """Return a door and a request, which is often equal to an earlier one."""
        text, model = f"question {self.random.randrange(4)}", self.random.choice(MODELS)
        more = {"temperature": 0, "stream": self.random.random() < 0.4}
        if self.random.random() < 0.3:
            return "/v1/messages", chat(text, model, max_tokens=50, **more)
        return "/v1/chat/completions", chat(text, model, **more)

    def headers(self, body: dict[str, Any], wait: int = 0) -> dict[str, str]:
        """Return headers, some with a key, which may be that of an equal request or of another one."""
        keys = [None, None, f"{body['model']} {body['messages']}", f"key {self.random.randrange(4)}"]
        key = self.random.choice(keys)
        return {"prefer": f"wait={wait}"} | ({} if key is None else {"idempotency-key": key})

    async def ask(self) -> None:
        path, body = self.request()
        await self.send(self.token(), path, body, self.headers(body))

    async def ask_at_once(self) -> None:
        """Send equal requests at the same time, some with one key."""
        path, body = self.request()
        headers, token = self.headers(body), self.token()
        await asyncio.gather(*(self.send(token, path, body, headers) for _ in range(3)))

    async def wait(self) -> None:
        """Send a request that waits for its review, and read what comes, as it comes."""
        path, body = self.request()
        self.begin(self.send(self.token(), path, body, self.headers(body, wait=600), way="wait"))

    async def run(self) -> None:
        """Call a pipeline, and wait for its held step or not."""
        request = {"pipeline_name": self.random.choice([*PIPELINES]), "args": {}}
        headers = {"prefer": f"wait={self.random.choice([0, 600])}"}
        self.begin(self.send(self.token(), "/api/pipeline/call", request, headers, way="run"))

    def begin(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send a request in the background."""
        task = asyncio.ensure_future(sending)
        self.waits.add(task)
        task.add_done_callback(self.waits.discard)

    async def send(self, token: str, path: str, body: Any, headers: dict[str, str], way: str | None = None) -> None:
        headers = headers | {"authorization": f"Bearer {token}"}
        way = way or ("key" if "idempotency-key" in headers else "stream" if body.get("stream") else "answer")
        async with self.server.http.post(self.server.url + path, json=body, headers=headers) as response:
            is_cached = response.headers.get("x-signoff-cache") == "hit"
            text = ""
            async for chunk in response.content.iter_any():
                text += chunk.decode()
                await self.check(way, text)
            await self.check("cache" if is_cached else way, text)

    async def enqueue(self) -> None:
        """Submit a job or a run whose end goes to a webhook."""
        token, target = self.token(), self.random.choice([*MODELS, *PIPELINES])
        body = {} if target in PIPELINES else chat(f"question {self.random.randrange(4)}", target, temperature=0)
        native = {"target": target, "body": body, "deliver": {"url": self.hook.url, "secret": SECRET}}
        native |= {"path": "/predict"} if target in PIPELINES else {}
        _, job = await self.server.ask("POST", "/api/jobs", token, json=native)
        self.jobs.append((token, job["job_id"]))

    async def batch(self) -> None:
        """Create a batch for a model."""
        model = self.random.choice(MODELS)
        ai = openai.AsyncOpenAI(base_url=self.server.url + "/v1", api_key=self.token(), max_retries=0)
        lines = [a_line(f"line {number}", f"question {number}", model=model, temperature=0) for number in range(6)]
        file_id = await uploaded(ai, as_file(*lines))
        batch = await ai.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
        self.batches.append((ai, batch.id))

    async def send_message(self) -> None:
        await self.wire.send(request_message(f"question {self.random.randrange(4)}", self.random.choice(MODELS)))

    # What can be read

    async def read(self) -> None:
        """Read a job by all routes for its caller, with its steps, in its own page and in the list."""
        if not self.jobs:
            return
        stored = await self.stored()
        waiting = {job.id for job in stored if not job.is_terminal}
        jobs = [job for job in self.jobs if job[1] in waiting] or self.jobs
        token, job_id = self.random.choice(self.random.choice([jobs, self.jobs]))
        path = f"/api/jobs/{job_id}"
        paths = {"job": path, "events": f"{path}/events", "log": f"{path}/run", "deliveries": f"{path}/deliveries"}
        paths |= {"page": f"/dashboard/jobs/{job_id}", "job of a queue": f"/job?id={job_id}", "list": "/api/jobs"}
        paths |= {"result": f"/check_status?job_id={job_id}", "jobs": "/jobs", "page of jobs": "/dashboard/jobs"}
        paths |= {f"step {job.node}": f"/api/jobs/{job.id}" for job in stored if job.parent_id == job_id}
        for way, each in paths.items():
            await self.check(way, str(await self.server.ask("GET", each, token)))

    async def read_batches(self) -> None:
        """Read the results of batches, as far as they exist."""
        for ai, batch_id in self.batches:
            batch = await ai.batches.retrieve(batch_id)
            await self.check("batch", batch.model_dump_json())
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                await self.check("batch", (await ai.files.content(file_id)).text)

    async def listen(self) -> None:
        """Read what comes on the topic, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await self.check("topic", json.dumps((await self.wire.get()).body))

    # Verdicts

    async def decide(self) -> None:
        held = [job for job in await self.stored() if job.status == "human" and job.response is not None]
        if held:
            await self.give(
                self.random.choice(held), self.random.choice(["approve", "approve", "edit", "redo", "reject"])
            )

    async def give(self, job: Job, choice: str) -> None:
        """Approve, edit, send back or reject an answer."""
        edit = Edit(response=json.dumps("Edited.")) if choice == "edit" else Edit()
        verdict: Verdict = choice if choice in {"redo", "reject"} else "approve"  # type: ignore[assignment]
        if choice == "approve":
            self.signed |= secrets_in((job.response or b"").decode())
        with contextlib.suppress(Stale):
            request = VerdictRequest(verdict=verdict, reason="r", round=job.round, edit=edit)
            await decide(self.server.services, REVIEWER, job.id, request)

    # The sequence

    def token(self) -> str:
        return self.random.choice(self.tokens)

    async def tell(self) -> None:
        """Take random steps, some of them at the same time, and then approve what is held, so that all comes out."""
        asks = [
            self.ask,
            self.ask,
            self.ask_at_once,
            self.wait,
            self.enqueue,
            self.enqueue,
            self.run,
            self.send_message,
        ]
        others = [self.read, self.read, self.read_batches, self.decide, self.decide, self.decide, self.decide]
        for number in range(STEPS):
            steps = [self.random.choice([*asks, *others])() for _ in range(self.random.choice([1, 1, 2]))]
            await self.together(*steps, *([self.batch()] if number % 20 == 5 else []))
        for _ in range(MAX_ROUNDS):
            held = [job for job in await self.stored() if job.status == "human" and job.response is not None]
            await self.together(*(self.give(job, "approve") for job in held[:10]), self.read(), self.read_batches())
            if not held and self.seen.keys() >= WAYS_OUT:
                break
            if not held:
                await self.together(self.wait(), self.ask(), self.enqueue(), self.run(), self.send_message())

    async def together(self, *steps: Coroutine[Any, Any, None]) -> None:
        await asyncio.gather(*steps)
        assert self.leaks == []


@contextlib.asynccontextmanager
async def telling(tmp_path: Path, url: str, prefix: str, **settings: Any) -> AsyncIterator[Story]:
    """Yield a story over a server with a model, a policy and a pipeline of each kind, a webhook and a topic."""
    async with (
        SecretModel() as upstream,
        CheckingReceiver() as hook,
        RedisClient(url, prefix).connected() as wire,
    ):
        topic = {"name": "topic", "url": url, "requests": wire.requests, "responses": wire.responses}
        more = {"cache": "sql", "webhook_allow": ["127.0.0.0/8"], "streams": [topic], "coalesce": True} | settings
        async with live(tmp_path, **more) as server:
            story = hook.story = Story(server, upstream, hook, wire)
            admin = await server.token("admin")
            for name in {*MODELS, "steps"}:
                review = "always" if name == "held" else None if name in {"judged", "audited"} else "never"
                await server.model(name, kind="openai", url=upstream.url, review=review)
            rules = [
                {"if": f'answer.text.matches("secret [0-9]*[{digits}]x")', "then": then}
                for digits, then in ((HELD, "hold"), (REJECTED, "reject"))
            ]
            policies = {"judged": {"rules": rules}, "audited": {"budget": BUDGET}}
            for name, policy in (policies | {"held_result": {"default": {"then": "hold"}}}).items():
                status, reply = await server.ask("PUT", f"/api/policies/{name}", admin, json={"target": name} | policy)
                assert status == 200, reply
            story.tokens = [await server.token("user", f"{name}@example.com") for name in ("ann", "bob")]
            assert (await server.ask("POST", "/api/functions/sync", admin))[0] == 200
            for name in ("free", "held", "judged", "steps"):
                prompt = {"name": f"of_{name}", "body": "A step.", "model": name, "shared": True}
                assert (await server.ask("POST", "/api/prompts", admin, json=prompt))[0] == 201
            for name, body in PIPELINES.items():
                pipeline = {"name": name, "body": body, "shared": True}
                status, reply = await server.ask("POST", "/api/pipelines", admin, json=pipeline)
                assert status == 201, reply
            await listening(server)
            listener = asyncio.ensure_future(story.listen())
            try:
                yield story
            finally:
                for task in (listener, *story.waits):
                    task.cancel()
                await asyncio.gather(listener, *story.waits, return_exceptions=True)


@pytest.mark.parametrize("seed", seeds(8))
async def test_no_text_leaves_by_any_door_before_it_is_signed(
    seed: int, tmp_path: Path, redis_url: str, prefix: str
) -> None:
    async with telling(tmp_path, redis_url, prefix) as story:
        story.random.seed(seed)
        await story.tell()
        assert story.seen.keys() >= WAYS_OUT, WAYS_OUT - story.seen.keys()
        assert len(story.upstream.models) > STEPS // 4
