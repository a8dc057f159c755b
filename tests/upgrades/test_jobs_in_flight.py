"""Upgrades with work in flight: what an older version has begun, on its schema, this one brings to the right end."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import openai
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from fakes.http_server import RecordedRequest, Reply, json_reply
from fakes.upstream import FakeUpstream, fake_upstream
from fakes.webhook_receiver import SECRET, WebhookReceiver, message_id
from signoff.core.delivery import DeliveryTarget
from signoff.core.job import Job
from signoff.stores.migrations import migrate_schema
from support.batches import CHAT, a_line, as_file
from support.live_server import chat
from support.processes import ask, clean_environment, first_token, free_port, served, signoff, until, verbs
from support.stores import ANSWER, a_job
from upgrades.last_release import Release

pytestmark = pytest.mark.anyio

FIRST_SCHEMA = "0001"
OLD_NAMES = {"own_id": "client_id"}
END_SECONDS = 120.0


@pytest.fixture(params=["sqlite", "postgres"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Return the environment of processes on an empty database, which send webhooks to this machine."""
    is_file = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/signoff.db" if is_file else request.getfixturevalue("empty_postgres_url")
    return clean_environment(
        tmp_path / "data",
        SIGNOFF_DATABASE_URL=url,
        SIGNOFF_WEBHOOK_ALLOW='["127.0.0.0/8"]',
        SIGNOFF_WEBHOOK_SECRET=SECRET,
        SIGNOFF_WEBHOOK_WAITS_SECONDS=str([0.2] * 300),
        SIGNOFF_RELEASE_AFTER_SECONDS="0",
    )


class Gate:
    """A model that answers requests with `wait` in their text only once it is open."""

    def __init__(self) -> None:
        self._open, self._loop = asyncio.Event(), asyncio.get_running_loop()

    def open(self) -> None:
        """Let all requests pass; any thread may call it."""
        self._loop.call_soon_threadsafe(self._open.set)

    async def reply(self, request: RecordedRequest) -> Reply:
        """Answer with the text of the request."""
        text = request.json()["messages"][-1]["content"]
        if "wait" in text:
            await self._open.wait()
        return json_reply({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


@contextmanager
def running(
    release: Release, environment: dict[str, str], folder: Path, *command: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process of the release that has written that it runs, and kill it after the block if it still does."""
    log = folder / f"{command[0]}-of-last-release.txt"
    with (folder / "out.txt").open("ab") as out, log.open("wb") as err:
        process = subprocess.Popen([*release.signoff, *command], env=environment, cwd=folder, stdout=out, stderr=err)
    try:
        sign = folder / "out.txt" if command[0] == "serve" else log
        until(
            lambda: (
                process.poll() is not None
                or b"Signoff is at" in sign.read_bytes()
                or b"Working" in sign.read_bytes()
                or None
            )
        )
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        process.wait()


class InflightWork:
    """Work that is in flight when the last release stops, and the client that has begun it."""

    def __init__(self, port: int, token: str, receiver: str) -> None:
        self.port, self.token, self._receiver = port, token, receiver
        self.ai = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=token, max_retries=0)
        self.jobs = dict[str, str]()
        self.batch = ""

    def submit(self, name: str, text: str, model: str, **more: Any) -> None:
        """Submit a job for the queue."""
        request = {"body": chat(text, model), "target": model} | more
        self.jobs[name] = self.ask("/api/jobs", request)["job_id"]

    def begin(self, upstream: FakeUpstream) -> None:
        """Register the models, and submit what a worker begins."""
        self.ask("/api/models", {"name": "gated", "kind": "openai", "url": f"{upstream.url}/v1"})
        self.ask("/api/models", {"name": "held", "kind": "echo", "review": "always"})
        self.submit("leased", "wait", "gated")
        self.submit("held", "held", "held")
        self.submit("delivery due", "delivered", "echo", deliver={"url": self._receiver})
        texts = ("now", "now", "wait", "wait")
        lines = [a_line(f"line-{number}", text, model="gated") for number, text in enumerate(texts)]
        file = self.ai.files.create(file=("in.jsonl", as_file(*lines)), purpose="batch")
        self.batch = self.ai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id

    def has_begun(self) -> bool | None:
        """Return True once a worker has come as far with everything as it can."""
        counts = self.ai.batches.retrieve(self.batch).request_counts
        [delivery] = self.ask(f"/api/jobs/{self.jobs['delivery due']}/deliveries")["data"] or [{"attempts": 0}]
        is_leased = self.verbs("leased")[-1] == "claim"
        is_far = counts is not None and counts.completed == 2 and delivery["attempts"] > 0
        return True if is_far and is_leased and self.status("held") == "human" else None

    def status(self, name: str) -> str:
        return self.ask(f"/api/jobs/{self.jobs[name]}")["status"]

    def verbs(self, name: str) -> list[str]:
        return verbs(self.port, self.token, self.jobs[name])

    def approve(self, name: str) -> None:
        self.ask(f"/api/reviews/{self.jobs[name]}/decide", {"round": 1, "verdict": "approve"})

    def have_ended(self) -> bool | None:
        """Return True once every job and the batch have ended, and every delivery is done."""
        batch = self.batch and self.ai.batches.retrieve(self.batch).status
        deliveries = self.ask(f"/api/jobs/{self.jobs['delivery due']}/deliveries")["data"]
        states = {delivery["state"] for delivery in deliveries}
        statuses = {self.status(name) for name in self.jobs}
        return True if (statuses, states) == ({"success"}, {"done"}) and batch in {"", "completed"} else None

    def ask(self, path: str, body: Any = None) -> Any:
        return ask(self.port, path, self.token, body)


@pytest.mark.long
async def test_what_the_last_release_has_begun_ends_as_it_should(
    old: Release, environment: dict[str, str], tmp_path: Path
) -> None:
    gate = Gate()
    async with fake_upstream(gate.reply) as upstream, WebhookReceiver() as receiver:
        receiver.answers = [500] * 10_000
        port = free_port()
        work = await asyncio.to_thread(begin_and_stop, old, environment, tmp_path, port, upstream, receiver)
        # when this version goes on
        await asyncio.to_thread(go_on_to_the_end, work, environment, tmp_path, gate, receiver)
        # then all has ended as it should, and once
        messages = list(await receiver.received())
    assert len({message_id(message) for message in messages}) == 1


def begin_and_stop(
    old: Release,
    environment: dict[str, str],
    tmp_path: Path,
    port: int,
    upstream: FakeUpstream,
    receiver: WebhookReceiver,
) -> InflightWork:
    """Begin all kinds of work with the last release; migrate the schema of a database server while it runs; stop it."""
    is_file = environment["SIGNOFF_DATABASE_URL"].startswith("sqlite:")
    subprocess.run([*old.signoff, "migrate"], env=environment, check=True, cwd=tmp_path)
    with running(old, environment, tmp_path, "serve", "--port", str(port), "--no-work") as server:
        work = InflightWork(port, first_token(tmp_path), receiver.url)
        work.begin(upstream)
        with running(old, environment, tmp_path, "work"):
            until(work.has_begun)
        work.submit("queued", "queued", "echo")
        if not is_file:
            signoff(environment, "migrate")
            # the server of before still answers, and takes new jobs
            assert ask(port, "/health/ready", work.token)["store"]
            work.submit("queued after the migration", "queued", "echo")
            assert work.status("held") == "human"
        server.terminate()
        assert server.wait(END_SECONDS) in {0, -15}
    return work


def go_on_to_the_end(
    work: InflightWork, environment: dict[str, str], tmp_path: Path, gate: Gate, receiver: WebhookReceiver
) -> None:
    """Start this version, which migrates a file; let the model and the receiver answer, and give a verdict."""
    receiver.answers = []
    gate.open()
    with served(environment, tmp_path, work.port):
        work.approve("held")
        until(work.have_ended, END_SECONDS)
        assert work.verbs("leased") == ["submit", "claim", "lapse", "claim", "succeed"]
        assert work.verbs("held")[-2:] == ["decide", "approve"]
        batch = work.ai.batches.retrieve(work.batch)
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 4, "completed": 4, "failed": 0}
        assert batch.output_file_id is not None
        lines = [json.loads(line) for line in work.ai.files.content(batch.output_file_id).text.splitlines()]
        assert [line["custom_id"] for line in lines] == [f"line-{number}" for number in range(4)]
    assert "Traceback" not in (tmp_path / "err.txt").read_text()


async def test_what_waits_in_the_first_schema_ends_as_it_should(environment: dict[str, str], tmp_path: Path) -> None:
    async with WebhookReceiver() as receiver:
        # given a database of the first schema, with jobs in each state, and a delivery that is due
        target = DeliveryTarget(address=receiver.url, host=str(urlsplit(receiver.url).hostname))
        jobs = {
            "queued": a_job(),
            "leased": a_job(seq=2, attempt=1, lease="gone", lease_until=1),
            "held": a_job(status="human", seq=3, attempt=1, round=1, response=ANSWER),
            "delivery due": a_job(status="success", seq=3, attempt=1, response=ANSWER, deliver=(target,)),
        }
        delivery = {"id": "del_1", "job_id": jobs["delivery due"].id, "kind": "webhook", "address": receiver.url}
        delivery |= {"host": target.host, "state": "due", "attempt": 0, "due_at": 1, "created_at": 1}
        await asyncio.to_thread(write_first_schema, environment["SIGNOFF_DATABASE_URL"], jobs, delivery)
        # when this version starts on it, then all of them end as they should
        await asyncio.to_thread(end_jobs_of_first_schema, environment, tmp_path, jobs)
        [message] = list(await receiver.received())
    assert message.json()["data"]["job_id"] == jobs["delivery due"].id


def end_jobs_of_first_schema(environment: dict[str, str], tmp_path: Path, jobs: dict[str, Job]) -> None:
    signoff(environment, "migrate")
    port = free_port()
    with served(environment, tmp_path, port):
        work = InflightWork(port, first_token(tmp_path), "")
        work.jobs = {name: job.id for name, job in jobs.items()}
        work.approve("held")
        until(work.have_ended)
        assert work.verbs("leased") == ["submit", "claim", "lapse", "claim", "succeed"]
        assert work.verbs("held") == ["submit", "claim", "hold", "decide", "approve"]
    assert "Traceback" not in (tmp_path / "err.txt").read_text()


def write_first_schema(url: str, jobs: dict[str, Job], delivery: dict[str, Any]) -> None:
    """Create a database of the first schema with these rows, and with the events that led to the jobs."""

    def write(conn: Connection) -> None:
        migrate_schema(conn, FIRST_SCHEMA)
        tables = sa.MetaData()
        tables.reflect(conn)
        conn.execute(sa.insert(tables.tables["deliveries"]).values(**delivery))
        for job in jobs.values():
            conn.execute(sa.insert(tables.tables["jobs"]).values(**columns_of(job, tables.tables["jobs"])))
            settled = {"human": "hold", "success": "succeed"}.get(job.status, "")
            for seq, verb in enumerate(("submit", "claim", settled)[: job.seq], 1):
                event = {"job_id": job.id, "seq": seq, "verb": verb, "actor": "user:ann", "at": 1, "data": b"{}"}
                conn.execute(sa.insert(tables.tables["events"]).values(**event))

    async def on_postgres() -> None:
        engine = create_async_engine(url.replace("://", "+asyncpg://"))
        async with engine.begin() as conn:
            await conn.run_sync(write)
        await engine.dispose()

    if not url.startswith("sqlite:"):
        asyncio.run(on_postgres())
        return
    engine = sa.create_engine(url)
    with engine.begin() as conn:
        write(conn)
    engine.dispose()


def columns_of(job: Job, table: sa.Table) -> dict[str, Any]:
    """Return the job as a row of the first schema: structured values are JSON."""
    row = dict[str, Any]()
    for column in table.c:
        value = getattr(job, OLD_NAMES.get(column.name, column.name), None)
        is_json = isinstance(column.type, sa.LargeBinary) and value is not None and not isinstance(value, bytes)
        row[column.name] = msgspec.json.encode(value) if is_json else value
    return row
