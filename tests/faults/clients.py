"""Clients of a round: they submit jobs, call and wait, cancel, and read held jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import aiohttp
import msgspec

from faults.cluster import Member
from faults.history import History
from faults.wishes import NAME, Wish, wishes

ANSWER_SECONDS = 12.0
REPEATS = 40
REPEAT_SECONDS = 0.25
HELD_SECONDS = 3
Answer = tuple[int | None, Any, Mapping[str, str]]


class Line:
    """HTTP client with the token of one user. A status of None means that no response arrived."""

    def __init__(self, http: aiohttp.ClientSession, token: str, open_requests: Counter[str]) -> None:
        self._http = http
        self._headers = {"authorization": f"Bearer {token}"}
        self._open = open_requests

    async def ask(self, server: Member, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request; return status, payload and headers. The status is None if there was no response in time."""
        data = None if body is None else msgspec.json.encode(body)
        with self._counted(server):
            try:
                return await self._send(method, server.url + path, data, self._headers | headers)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                return None, type(error).__name__, {}

    async def _send(self, method: str, url: str, data: bytes | None, headers: Mapping[str, str]) -> Answer:
        async with self._http.request(method, url, data=data, headers=headers) as response:
            text = await response.read()
            return response.status, _decoded(text), response.headers

    @contextlib.contextmanager
    def _counted(self, server: Member) -> Iterator[None]:
        self._open[server.name] += 1
        try:
            yield
        finally:
            self._open[server.name] -= 1


class Asking:
    """Callers that send requests and record the responses in the history."""

    def __init__(
        self,
        line: Line,
        servers: Sequence[Member],
        history: History,
        random_float: Random,
        *,
        hook_url: str,
        later: Mapping[str, int],
    ) -> None:
        self._line, self._servers, self._history, self._random_float, self._hook_url = (
            line,
            servers,
            history,
            random_float,
            hook_url,
        )
        self._wishes = wishes(random_float, later)
        self.is_over = asyncio.Event()
        self.may_ask = asyncio.Event()
        self.may_ask.set()
        self.tasks: list[asyncio.Task[None]] = []
        self._accepted = set[str]()

    @property
    def accepted(self) -> int:
        """Return the number of jobs that were accepted."""
        return len(self._accepted)

    async def ask_for_ever(self) -> None:
        """Send one request after the other until the round is over."""
        while not self.is_over.is_set():
            await self.may_ask.wait()
            wish = next(self._wishes)
            if wish.twin:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._want(wish))
                    group.create_task(self._want(wish))
            else:
                await self._want(wish)

    async def _want(self, wish: Wish) -> None:
        """Send a request; repeat one with an idempotency key until there is a final response."""
        job_id = None
        for _ in range(REPEATS if wish.key else 1):
            answer = await self._ask_once(wish)
            job_id = job_id or answer[1]
            if answer[0] is not None and answer[0] < 500:
                break
            if wish.way == "call" and job_id is not None:
                break  # the response named the job, which goes on or has failed
            await asyncio.sleep(REPEAT_SECONDS * self._random_float.random())
        if job_id is not None:
            self._accepted.add(job_id)
            if wish.cancel:
                await self._cancel(job_id)

    async def _ask_once(self, wish: Wish) -> tuple[int | None, str | None]:
        """Send the request once, and return the status and the id of the job, if the response names it."""
        server = self._random_float.choice(self._servers)
        pid = server.pid
        headers = {"idempotency-key": wish.key} if wish.key else {}
        self._history.tell("asked", wish=wish.name, way=wish.way, target=wish.target, key=wish.key, hook=wish.hook)
        ask = {"job": self._submit, "enqueue": self._enqueue, "call": self._call}[wish.way]
        status, told, answered = await ask(server, wish, headers)
        job_id = answered.get("x-signoff-job") or _job_in(told)
        more = {"status": status, "job": job_id, "pid": pid, "way": wish.way}
        if wish.way == "call" and status == 200:
            more |= {"answered": _is_whole(told, wish), "right": wish.name.encode() in _text_of(told)}
        elif status is None or status >= 400:
            more |= {"why": told if status is None else _code_in(told)}
        self._history.tell("told", wish=wish.name, key=wish.key, **more)
        return status, job_id

    async def _submit(self, server: Member, wish: Wish, headers: dict[str, str]) -> Answer:
        asked: dict[str, Any] = {"target": wish.target, "body": wish.body}
        if wish.hook:
            asked["deliver"] = {"url": self._hook_url}
        return await self._line.ask(server, "POST", "/api/jobs", asked, **headers)

    async def _enqueue(self, server: Member, wish: Wish, headers: dict[str, str]) -> Answer:
        return await self._line.ask(server, "POST", "/enqueue", wish.body, **headers)

    async def _call(self, server: Member, wish: Wish, headers: dict[str, str]) -> Answer:
        patience = {"prefer": f"wait={HELD_SECONDS}"}
        return await self._line.ask(server, "POST", "/v1/chat/completions", wish.body, **headers, **patience)

    async def _cancel(self, job_id: str) -> None:
        await asyncio.sleep(self._random_float.random() * 0.5)
        status, _, _ = await self._line.ask(self._random_float.choice(self._servers), "DELETE", f"/api/jobs/{job_id}")
        self._history.tell("cancelled", job=job_id, status=status)


class Looking:
    """A caller who may not review, and reads their own held jobs through every door."""

    def __init__(self, line: Line, servers: Sequence[Member], history: History, random_float: Random) -> None:
        self._line, self._servers, self._history, self._random_float = line, servers, history, random_float

    async def look_for_ever(self, pause_seconds: float) -> None:
        """Read held jobs until cancelled."""
        while True:
            await asyncio.sleep(pause_seconds)
            server = self._random_float.choice(self._servers)
            for path, held in (("/jobs?status=human&limit=5", _plain), ("/api/jobs?status=human&limit=5", _paged)):
                status, told, _ = await self._line.ask(server, "GET", path)
                if status == 200:
                    await self._look_at(server, held(told))

    async def _look_at(self, server: Member, found: list[dict[str, Any]]) -> None:
        for job in found:
            self._tell(job, "list")
        for job in found[:1]:
            for path in (f"/job?id={job['job_id']}", f"/api/jobs/{job['job_id']}"):
                status, told, _ = await self._line.ask(server, "GET", path)
                if status == 200:
                    self._tell(told, path.partition("?")[0])
            status, told, _ = await self._line.ask(server, "GET", f"/api/jobs/{job['job_id']}/events")
            if status == 200:
                seen = any(event["data"] for event in told["data"])
                self._history.tell("looked", job=job["job_id"], way="events", held=True, seen=seen)

    def _tell(self, job: dict[str, Any], way: str) -> None:
        held = job["status"] == "human"
        seen = held and job["response"] is not None
        self._history.tell("looked", job=job["job_id"], way=way, held=held, seen=seen)


def _plain(told: Any) -> list[dict[str, Any]]:
    return told


def _paged(told: Any) -> list[dict[str, Any]]:
    return told["data"]


def _decoded(text: bytes) -> Any:
    """Return the decoded JSON, or the body of a stream as text."""
    try:
        return msgspec.json.decode(text)
    except ValueError:
        return text.decode(errors="replace")


def _job_in(told: Any) -> str | None:
    """Return the id of the job in a response, wherever the door puts it."""
    if not isinstance(told, dict):
        return None
    error = told.get("error")
    return told.get("job_id") or (error.get("job_id") if isinstance(error, dict) else None)


def _code_in(told: Any) -> str:
    error = told.get("error", told) if isinstance(told, dict) else told
    return str(error.get("code") if isinstance(error, dict) else error)[:200]


def _is_whole(told: Any, wish: Wish) -> bool:
    """Return True if the payload is a complete answer and not an error."""
    if wish.stream and isinstance(told, str):
        return told.rstrip().endswith("data: [DONE]") and '"error"' not in told
    return isinstance(told, dict) and "error" not in told


def _text_of(told: Any) -> bytes:
    """Return the answer as bytes; a stream unchanged."""
    return told.encode() if isinstance(told, str) else msgspec.json.encode(told)


def wish_in(body: bytes) -> str | None:
    """Return the name of the request in a body, if there is one."""
    found = NAME.search(body)
    return found[0].decode() if found else None
