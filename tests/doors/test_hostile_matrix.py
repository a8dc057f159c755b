"""Every route, with seven callers, on objects that one of them owns: who gets what, and that nobody else gets more."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from yarl import URL

from doors.described_responses import DescribedResponses
from doors.hostile_matrix import PERSONS_FIRST, ROLE_FIRST, TABLE, UPSTREAM_DECIDES
from doors.hostile_row import KNOWN_CALLERS, PUBLIC, UNKNOWN_CALLERS, Row
from fakes.upstream import fake_upstream
from fakes.webhook_receiver import SECRET as SIGNING_SECRET
from fakes.webhook_receiver import WebhookReceiver
from signoff.core.access import User
from signoff.core.api_paths import KNOWN
from signoff.server.http import _litestar_app
from signoff.work.admin.people import create_token, create_user, sign_in_link
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio

# In every text, secret, address and answer of the owner, and in no path.
SECRET = "amber"
EMAIL = f"{SECRET}@example.com"
AT_ONCE = 8
DOCS = Path(__file__).parents[2] / "docs"
MODELS: dict[str, dict[str, Any]] = {
    "usual": {"default": True},
    "checked": {"review": "always"},
    "changed": {},
    "spare": {},
}
World = Mapping[str, str]
NOWHERE = {
    **dict.fromkeys(("ended", "held", "decided", "late", "run", "delivery"), "01900000-0000-7000-8000-000000000000"),
    **dict.fromkeys(("key", "own_key", "token", "spare_token", "session", "user", "pipeline_id"), "2000000"),
    **dict.fromkeys(("prompt", "spare_prompt", "pipeline", "spare_pipeline", "client_id", "first"), "nothing"),
    **dict.fromkeys(("object", "spare_object"), "resp_9Nothing"),
    **dict.fromkeys(("file", "spare_file", "output"), f"file-{'9' * 32}"),
    "batch": f"batch_{'9' * 32}",
    "held_number": "8" * 32,
    **dict.fromkeys(("messages", "spare_messages"), f"msgbatch_{'9' * 32}"),
    "email": "nobody@example.com",
}


class Matrix:
    """A server, the tokens of all callers, and objects of the owner, of which each caller with a token gets some.

    The requests of the table go to `servers` in turn, which share a database.
    """

    def __init__(self, servers: Sequence[Live], receiver: WebhookReceiver) -> None:
        self.server = servers[0]
        self._turns = itertools.cycle(servers)
        self.receiver = receiver
        self.tokens: dict[str, str | None] = {"no token": None}
        self.worlds = dict[str, World]()

    async def fill(self, callers: Sequence[str]) -> None:
        """Create users and models, and objects for each of `callers`."""
        services = self.server.services
        people = {"other": ("user", "bob@example.com"), "owner": ("user", EMAIL)}
        people |= {role: (role, f"{role}@example.org") for role in ("reviewer", "admin")}
        for caller, (role, email) in people.items():
            self.tokens[caller] = await self.server.token(role, email)
        former = await create_user(services, "former@example.com", "admin")
        self.tokens["disabled user"] = await create_token(services, former)
        await services.store.people.change_user(former.id, role=None, active=False)
        admin = await create_user(services, "admin@example.org", "admin")
        self.tokens["expired token"] = await create_token(services, admin, seconds=-1)
        for name, more in MODELS.items():
            await self.server.model(name, **more)
        for name in ("stream", "spare"):
            stream = {
                "name": name,
                "url": "amqp://ann:pw@127.0.0.1:9/",
                "requests": f"{name}1",
                "responses": f"{name}2",
            }
            await self.must("admin", "POST", "/api/streams", stream)
        for name in ("spare", "gone"):
            await self.must("admin", "PUT", f"/api/review-queues/{name}", {})
        for name in ("policy", "spare"):
            policy = {"target": f"nosuch-{name}", "budget": {"answers": 10_000, "share": 0.02, "audit_rate": 0.1}}
            await self.must("admin", "PUT", f"/api/policies/{name}", policy)
        await self.must("admin", "PUT", "/api/limits/each?model=spare", {"parallel": 1000})
        price = {"model": "spare", "input": "1", "output": "1", "valid_from": "2026-01-31"}
        await self.must("admin", "PUT", "/api/prices", price)
        for number, caller in enumerate(callers):
            self.worlds[caller] = await self.objects(caller, number)

    async def must(self, caller: str, method: str, path: str, body: Any = None) -> Any:
        """Send a request that has to succeed, and return its response."""
        status, response = await self.server.ask(method, path, self.tokens[caller], json=body)
        assert 200 <= status < 300, (path, response)
        return response

    async def job(self, status: str, **fields: Any) -> str:
        """Submit a job of the owner, and return its id once it has the status."""
        messages = chat(f"{SECRET} question")["messages"]
        request = {"body": {"messages": messages}, "target": "echo", "metadata": {"note": SECRET}} | fields
        job_id = (await self.must("owner", "POST", "/api/jobs", request))["job_id"]
        token = self.tokens["owner"] or ""
        await self.server.job_when(token, job_id, lambda job: job["status"] == status)
        return job_id

    async def objects(self, caller: str, number: int) -> World:
        """Create objects of the owner for the requests of `caller`, and return their names by those of the table."""
        deliver = {"url": f"{self.receiver.url}&{SECRET}"}
        ended = await self.job("success", deliver=deliver)
        names = {kind: f"{kind}{number}" for kind in ("prompt", "spare_prompt", "pipeline", "spare_pipeline")}
        for name in (names["prompt"], names["spare_prompt"]):
            item = {"name": name, "body": f"{SECRET} {{x}}", "model": "echo", "message": SECRET}
            await self.must("owner", "POST", "/api/prompts", item)
        for name in (names["pipeline"], names["spare_pipeline"]):
            item = {"name": name, "body": f"{names['prompt']}(x)", "message": SECRET}
            await self.must("owner", "POST", "/api/pipelines", item)
        for item in (f"/api/prompts/{names['prompt']}", f"/api/pipelines/{names['pipeline']}"):
            await self.must("owner", "PUT", f"{item}/labels/old", {"version": 1})
        run = {"pipeline_name": names["pipeline"], "args": {"x": SECRET}}
        await self.must("owner", "POST", "/api/pipeline/call", run)
        newest = await self.must("owner", "GET", "/api/jobs?limit=1")
        text = {"content": f"{SECRET} text", "job_id": f"order-{number}"}
        await self.must("owner", "POST", "/generate", text)
        keys = [
            await self.must("owner", "POST", "/api/keys", {"name": SECRET, "key": f"sk-{SECRET}"}) for _ in range(2)
        ]
        for _ in range(2):
            await self.must("owner", "POST", "/api/tokens", {"name": f"{SECRET} {number}"})
        owner = await create_user(self.server.services, EMAIL, "user")
        tokens = (await self.must("owner", "GET", "/api/tokens"))["data"]
        item = await self.must("owner", "GET", f"/api/pipelines/{names['pipeline']}")
        stored = [
            (await self.must("owner", "POST", "/v1/responses", {"model": "mine", "input": SECRET}))["id"]
            for _ in range(2)
        ]
        return (
            names
            | {
                "caller": caller,
                "email": EMAIL,
                "user": str(owner.id),
                "first": ended,
                "ended": ended,
                "held": await self.job("human", target="checked"),
                "decided": await self.job("human", target="checked"),
                "late": await self.job("bot", due_at="2100-01-01T00:00:00Z"),
                "run": newest["data"][0]["job_id"],
                "client_id": f"order-{number}",
                "delivery": await self.delivery(ended),
                "key": str(keys[0]["id"]),
                "own_key": str(keys[1]["id"]),
                "token": str(tokens[-1]["id"]),
                "spare_token": str(tokens[-2]["id"]),
                "session": await self.session(owner),
                "pipeline_id": str(item["id"]),
                "object": stored[0],
                "spare_object": stored[1],
            }
            | await self.batches()
        )

    async def batches(self) -> World:
        """Create files and batches of the owner, one with a held answer, and return their names."""
        chats = [chat(f"{SECRET} question", model) for model in ("echo", "checked")]
        line = {"custom_id": SECRET, "method": "POST", "url": "/v1/chat/completions"}
        files = [await self.upload(json.dumps(line | {"body": each})) for each in (chats[0], chats[0], chats[1])]
        held_before = len(await self.held())
        new = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"note": SECRET}}
        ended, held = [
            (await self.must("owner", "POST", "/v1/batches", new | {"input_file_id": file_id}))["id"]
            for file_id in files[1:]
        ]
        message = {"custom_id": SECRET, "params": chats[0] | {"max_tokens": 9}}
        messages = [
            (await self.must("owner", "POST", "/v1/messages/batches", {"requests": [message]}))["id"] for _ in range(2)
        ]
        for each in messages:
            await self.until_it_is("ended", f"/v1/messages/batches/{each}", "processing_status")
        names = {"file": files[1], "spare_file": files[0], "batch": ended, "held_number": held.partition("_")[2]}
        output = {"output": await self.until_it_is("completed", f"/v1/batches/{ended}", "status", "output_file_id")}
        await until(lambda: self.has_held(held_before + 1))
        return names | output | {"messages": messages[0], "spare_messages": messages[1]}

    async def held(self) -> list[Any]:
        """Return the held jobs of the owner."""
        return (await self.must("owner", "GET", "/api/jobs?status=human&limit=1000"))["data"]

    async def has_held(self, number: int) -> bool | None:
        """Return True if `number` jobs of the owner are held; else None."""
        return len(await self.held()) == number or None

    async def upload(self, line: str) -> str:
        """Upload an input file of the owner, and return its id."""
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", line.encode(), filename=f"{SECRET}.jsonl")
        status, file = await self.server.ask("POST", "/v1/files", self.tokens["owner"], data=form)
        assert status == 200, file
        return file["id"]

    async def until_it_is(self, state: str, path: str, member: str, result: str = "id") -> str:
        """Return the member `result` of what the owner reads at `path`, once its `member` is `state`."""

        async def look() -> str | None:
            read = await self.must("owner", "GET", path)
            return read[result] if read[member] == state else None

        return await until(look)

    async def session(self, owner: User) -> str:
        """Sign the owner in, and return the id of the session."""
        link = await sign_in_link(self.server.services, owner)
        async with self.server.http.get(self.server.url + link, allow_redirects=False):
            self.server.http.cookie_jar.clear()
        return str((await self.must("owner", "GET", "/api/sessions"))["data"][-1]["id"])

    async def delivery(self, job_id: str) -> str:
        """Return the id of the delivery of a job, once it is done."""

        async def done() -> str | None:
            rows = (await self.must("owner", "GET", f"/api/jobs/{job_id}/deliveries"))["data"]
            return rows[0]["id"] if rows and rows[0]["state"] == "done" else None

        return await until(done)

    async def send(self, caller: str, row: Row, world: World) -> tuple[int, str]:
        """Send the request of a row; return the status, and the headers and the body as a text."""
        method, _, _ = row.route.partition(" ")
        body = row.body if row.body is None or isinstance(row.body, str) else json.dumps(row.body)
        token = self.tokens[caller]
        headers = row.headers | ({} if token is None else {"authorization": f"Bearer {token}"})
        address = URL(next(self._turns).url + fill_in(row.path, world), encoded=True)
        content = None if body is None else fill_in(body, world).encode()
        async with self.server.http.request(
            method, address, data=content, headers=headers, allow_redirects=False
        ) as response:
            text = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
            return response.status, f"{text}\n\n{await response.text()}"

    async def send_all(self, caller: str, rows: Sequence[Row], world: World) -> list[tuple[Row, int, str]]:
        """Send the requests of all rows, some at a time, those that are last after the others."""
        places = asyncio.Semaphore(AT_ONCE)

        async def send_one(row: Row) -> tuple[Row, int, str]:
            async with places:
                return (row, *await self.send(caller, row, world))

        first, last = [row for row in rows if not row.is_last], [row for row in rows if row.is_last]
        return [*await asyncio.gather(*map(send_one, first)), *await asyncio.gather(*map(send_one, last))]

    async def snapshot(self) -> dict[str, str]:
        """Return what the owner reads of each object that the strangers had names of."""
        world = self.worlds["other"]
        paths = [f"/api/jobs/{world[name]}" for name in ("ended", "held", "decided", "late", "run")]
        paths += [f"/api/jobs/{world[name]}/events" for name in ("ended", "held", "decided", "late", "run")]
        paths += [f"/api/jobs/{world['run']}/run", f"/api/jobs/{world['ended']}/deliveries"]
        paths += [f"/api/{kind}s/{world[kind]}/versions" for kind in ("prompt", "pipeline")]
        paths += [f"/api/{kind}s/{world[f'spare_{kind}']}" for kind in ("prompt", "pipeline")]
        paths += [f"/v1/files/{world[name]}" for name in ("file", "spare_file", "output")]
        paths += [f"/v1/batches/{world['batch']}", f"/v1/messages/batches/{world['spare_messages']}"]
        paths += ["/api/keys", "/api/tokens", "/api/sessions", "/api/users", "/api/cache", "/api/jobs?limit=1000"]
        texts = {path: json.dumps(await self.must("owner", "GET", path)) for path in paths}
        return {path: re.sub(r'"last_used_at": [^,}]*', "", text) for path, text in texts.items()}


def fill_in(text: str, world: World) -> str:
    """Return `text` with the names of objects; a number replaces its quotes as well."""

    def name(place: re.Match[str]) -> str:
        value = world[place[2]]
        return value if place[1] and place[2] == "own_key" else f"{place[1]}{value}{place[1]}"

    return re.sub(r'("?)<(\w+)>\1', name, text)


@asynccontextmanager
async def matrix(
    tmp_path: Path, database_url: str | None, callers: Sequence[str] = KNOWN_CALLERS
) -> AsyncIterator[Matrix]:
    """Yield a server with all callers, and with objects for each of `callers`; two of them if `database_url` is set."""
    settings: dict[str, Any] = {"webhook_allow": ["127.0.0.0/8"], "webhook_secret": SIGNING_SECRET}
    settings |= {"database_url": database_url}
    async with AsyncExitStack() as stack:
        fake, receiver = [await stack.enter_async_context(each) for each in (fake_upstream(), WebhookReceiver())]
        count = 1 if database_url is None else 2
        servers = [await stack.enter_async_context(live(tmp_path, **settings)) for _ in range(count)]
        await servers[0].model("mine", kind="openai", url=fake.at("keep"))
        filled = Matrix(servers, receiver)
        await filled.fill(callers)
        yield filled


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Return the URL of the database of two servers; None for one server with an embedded database."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


def expected(row: Row, caller: str) -> set[int]:
    """Return the statuses of a row for a caller."""
    first, *rest = row.statuses.split()
    if first == PUBLIC:
        return {int(status) for status in rest[0].split("/")}
    return {int([first, *rest][KNOWN_CALLERS.index(caller)])} if caller in KNOWN_CALLERS else {401}


def faults_of(caller: str, sent: Sequence[tuple[Row, int, str]]) -> list[str]:
    """Return a line for each response that is not as the table says."""
    return [
        f"{caller}: {row.route} {row.path} {row.body or ''}: {status}, not {expected(row, caller)}: {text[-200:]}"
        for row, status, text in sent
        if status not in expected(row, caller)
    ]


async def test_each_caller_gets_the_status_that_the_table_says(tmp_path: Path, database_url: str | None) -> None:
    """The same responses also show that the OpenAPI document says what is answered."""
    async with matrix(tmp_path, database_url) as filled:
        before, faults = await filled.snapshot(), list[str]()
        _, document = await filled.server.ask("GET", "/schema/openapi.json")
        described = DescribedResponses(document)
        # strangers first, while each object is still as its owner made it
        for caller in (*UNKNOWN_CALLERS, "other"):
            sent = await filled.send_all(caller, TABLE, filled.worlds["other"])
            faults += [*faults_of(caller, sent), *described.faults_of(sent)]
            faults += [f"{caller} reads of the owner: {row}: {text}" for row, _, text in sent if SECRET in text]
        assert await filled.snapshot() == before
        owner = await create_user(filled.server.services, EMAIL, "user")
        for caller in ("owner", "reviewer", "admin"):
            # the caller before has ended all sessions
            filled.worlds[caller] = {**filled.worlds[caller], "session": await filled.session(owner)}
            sent = await filled.send_all(caller, TABLE, filled.worlds[caller])
            faults += [*faults_of(caller, sent), *described.faults_of(sent)]
        assert not faults, "\n".join(faults)
        assert described.seen > 500


async def test_another_user_cannot_tell_an_object_of_the_owner_from_none(
    tmp_path: Path, database_url: str | None
) -> None:
    async with matrix(tmp_path, database_url, ["other"]) as filled:
        rows = [row for row in TABLE if row.names_object and row.route not in UPSTREAM_DECIDES]
        faults = list[str]()
        for row in rows:
            theirs = await filled.send("other", row, filled.worlds["other"])
            none = await filled.send("other", row, NOWHERE)
            if shown(theirs, filled.worlds["other"]) != shown(none, NOWHERE):
                faults.append(f"{row.route} {row.path}\n{theirs}\n{none}")
        assert len(rows) > 40
        assert not faults, "\n".join(faults)


def test_every_page_and_every_route_of_files_and_batches_is_in_the_table() -> None:
    rows = {row.route for row in TABLE}
    # Litestar's own are the schema and static files
    own = [
        (re.sub(r":\w+}", "}", route.path), each)
        for route in cast("Any", _litestar_app()).routes
        for each in route.route_handlers
        if not each.fn.__module__.startswith("litestar.")
    ]
    served = {f"{method} {path}" for path, each in own for method in each.http_methods - {"HEAD", "OPTIONS"}}
    assert len(served) > 150
    assert served - rows == set()
    # a test of the documentation compares it with what is served
    documented = "\n".join((DOCS / name).read_text() for name in ("api.md", "batches.md"))
    local = set(re.findall(r"`([A-Z]+ /v1/(?:messages/)?(?:files|batches)[^`?]*)`", documented))
    assert len(local) == 15
    assert local - rows == set()


async def test_every_route_is_in_the_table(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        _, document = await server.ask("GET", "/schema/openapi.json")
    described = DescribedResponses(document)
    rows = {row.route for row in TABLE}
    rows |= {f"{row.route.partition(' ')[0]} {described.path_of(row)}" for row in TABLE}
    served = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert len(served) > 170
    # one row for all endpoints of each of these
    cached = re.compile(r"(POST /api/(?:openai|cache)/).*")
    assert {cached.sub(r"\1{endpoint}", route) for route in served} - rows == set()
    assert {f"POST {path}" for path in KNOWN} - rows == set()


def test_the_table_says_what_the_documentation_promises() -> None:
    for row in TABLE:
        first, *rest = row.statuses.split()
        assert first == PUBLIC or len(rest) == len(KNOWN_CALLERS) - 1, row
        if row.names_object:
            is_own_page = row.route == "GET /jobs"  # a page of the caller's jobs, wherever it begins
            allowed = {"403"} if row.route in ROLE_FIRST else {"404", "403"} if row.route in PERSONS_FIRST else {"404"}
            assert first in allowed or is_own_page, row


def shown(response: tuple[int, str], world: World) -> tuple[int, str]:
    """Return the status and the body of a response without its own id and the names that its request had."""
    status, text = response
    body = text.partition("\n\n")[2]
    for value in sorted({*world.values()} - {world.get("caller")}, key=len, reverse=True):
        body = body.replace(value, "…") if len(value) > 2 else body
    return status, re.sub(r'\b\d+\b|"request_id":"[^"]*"', "…", body)
