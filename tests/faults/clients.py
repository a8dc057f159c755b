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
from faults.wishes import NAME, ClientRequest, client_requests

ANSWER_SECONDS = 12.0
REPEATS = 40
REPEAT_SECONDS = 0.25
HELD_SECONDS = 3
Response = tuple[int | None, Any, Mapping[str, str]]


class Client:
    """HTTP client with the token of one user. A status of None means that no response arrived."""

    def __init__(self, http: aiohttp.ClientSession, token: str, open_requests: Counter[str]) -> None:
        self._http = http
        self._headers = {"authorization": f"Bearer {token}"}
        self._open = open_requests

    async def request(self, server: Member, method: str, path: str, body: Any = None, **headers: str) -> Response:
        """Send a request; return status, payload and headers. The status is None if there was no response in time."""
        data = None if body is None else msgspec.json.encode(body)
        with self._counted(server):
            try:
                return await self._send(method, server.url + path, data, self._headers | headers)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                return None, type(error).__name__, {}

    async def _send(self, method: str, url: str, data: bytes | None, headers: Mapping[str, str]) -> Response:
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


class Callers:
    """Callers that send requests and record the responses in the history."""

    def __init__(
        self,
        client: Client,
        servers: Sequence[Member],
        history: History,
        rng: Random,
        *,
        hook_url: str,
        later: Mapping[str, int],
    ) -> None:
        self._client, self._servers, self._history, self._rng, self._hook_url = (
            client,
            servers,
            history,
            rng,
            hook_url,
        )
        self._requests = client_requests(rng, later)
        self.is_over = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.tasks: list[asyncio.Task[None]] = []
        self._accepted = set[str]()

    @property
    def accepted(self) -> int:
        """Return the number of jobs that were accepted."""
        return len(self._accepted)

    async def send_forever(self) -> None:
        """Send one request after the other until the round is over."""
        while not self.is_over.is_set():
            await self.may_send.wait()
            request = next(self._requests)
            if request.twin:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._send_until_final(request))
                    group.create_task(self._send_until_final(request))
            else:
                await self._send_until_final(request)

    async def _send_until_final(self, request: ClientRequest) -> None:
        """Send a request; repeat one with an idempotency key until there is a final response."""
        job_id = None
        for _ in range(REPEATS if request.key else 1):
            response = await self._send_once(request)
            job_id = job_id or response[1]
            if response[0] is not None and response[0] < 500:
                break
            if request.door == "call" and job_id is not None:
                break  # the response named the job, which goes on or has failed
            await asyncio.sleep(REPEAT_SECONDS * self._rng.random())
        if job_id is not None:
            self._accepted.add(job_id)
            if request.cancel:
                await self._cancel(job_id)

    async def _send_once(self, request: ClientRequest) -> tuple[int | None, str | None]:
        """Send the request once, and return the status and the id of the job, if the response names it."""
        server = self._rng.choice(self._servers)
        pid = server.pid
        headers = {"idempotency-key": request.key} if request.key else {}
        self._history.record(
            "asked", wish=request.name, way=request.door, target=request.target, key=request.key, hook=request.hook
        )
        send = {"job": self._submit, "enqueue": self._enqueue, "call": self._call}[request.door]
        status, payload, response_headers = await send(server, request, headers)
        job_id = response_headers.get("x-signoff-job") or _job_in(payload)
        more = {"status": status, "job": job_id, "pid": pid, "way": request.door}
        if request.door == "call" and status == 200:
            more |= {"answered": _is_complete(payload, request), "right": request.name.encode() in _text_of(payload)}
        elif status is None or status >= 400:
            more |= {"why": payload if status is None else _code_in(payload)}
        self._history.record("told", wish=request.name, key=request.key, **more)
        return status, job_id

    async def _submit(self, server: Member, request: ClientRequest, headers: dict[str, str]) -> Response:
        payload: dict[str, Any] = {"target": request.target, "body": request.body}
        if request.hook:
            payload["deliver"] = {"url": self._hook_url}
        return await self._client.request(server, "POST", "/api/jobs", payload, **headers)

    async def _enqueue(self, server: Member, request: ClientRequest, headers: dict[str, str]) -> Response:
        return await self._client.request(server, "POST", "/enqueue", request.body, **headers)

    async def _call(self, server: Member, request: ClientRequest, headers: dict[str, str]) -> Response:
        wait_header = {"prefer": f"wait={HELD_SECONDS}"}
        return await self._client.request(
            server, "POST", "/v1/chat/completions", request.body, **headers, **wait_header
        )

    async def _cancel(self, job_id: str) -> None:
        await asyncio.sleep(self._rng.random() * 0.5)
        status, _, _ = await self._client.request(self._rng.choice(self._servers), "DELETE", f"/api/jobs/{job_id}")
        self._history.record("cancelled", job=job_id, status=status)


class HeldJobReader:
    """A caller who may not review, and reads their own held jobs through every door."""

    def __init__(self, client: Client, servers: Sequence[Member], history: History, rng: Random) -> None:
        self._client, self._servers, self._history, self._rng = client, servers, history, rng

    async def read_forever(self, pause_seconds: float) -> None:
        """Read held jobs until cancelled."""
        while True:
            await asyncio.sleep(pause_seconds)
            server = self._rng.choice(self._servers)
            for path, jobs_in in (
                ("/jobs?status=human&limit=5", _jobs_of_list),
                ("/api/jobs?status=human&limit=5", _jobs_of_page),
            ):
                status, payload, _ = await self._client.request(server, "GET", path)
                if status == 200:
                    await self._read_jobs(server, jobs_in(payload))

    async def _read_jobs(self, server: Member, jobs: list[dict[str, Any]]) -> None:
        for job in jobs:
            self._record(job, "list")
        for job in jobs[:1]:
            for path in (f"/job?id={job['job_id']}", f"/api/jobs/{job['job_id']}"):
                status, payload, _ = await self._client.request(server, "GET", path)
                if status == 200:
                    self._record(payload, path.partition("?")[0])
            status, payload, _ = await self._client.request(server, "GET", f"/api/jobs/{job['job_id']}/events")
            if status == 200:
                is_visible = any(event["data"] for event in payload["data"])
                self._history.record("looked", job=job["job_id"], way="events", held=True, seen=is_visible)

    def _record(self, job: dict[str, Any], source: str) -> None:
        is_held = job["status"] == "human"
        is_visible = is_held and job["response"] is not None
        self._history.record("looked", job=job["job_id"], way=source, held=is_held, seen=is_visible)


def _jobs_of_list(payload: Any) -> list[dict[str, Any]]:
    return payload


def _jobs_of_page(payload: Any) -> list[dict[str, Any]]:
    return payload["data"]


def _decoded(text: bytes) -> Any:
    """Return the decoded JSON, or the body of a stream as text."""
    try:
        return msgspec.json.decode(text)
    except ValueError:
        return text.decode(errors="replace")


def _job_in(payload: Any) -> str | None:
    """Return the id of the job in a response, wherever the door puts it."""
    if not isinstance(payload, dict):
        return None
    error = payload.get("error")
    return payload.get("job_id") or (error.get("job_id") if isinstance(error, dict) else None)


def _code_in(payload: Any) -> str:
    error = payload.get("error", payload) if isinstance(payload, dict) else payload
    return str(error.get("code") if isinstance(error, dict) else error)[:200]


def _is_complete(payload: Any, request: ClientRequest) -> bool:
    """Return True if the payload is a complete answer and not an error."""
    if request.stream and isinstance(payload, str):
        return payload.rstrip().endswith("data: [DONE]") and '"error"' not in payload
    return isinstance(payload, dict) and "error" not in payload


def _text_of(payload: Any) -> bytes:
    """Return the answer as bytes; a stream unchanged."""
    return payload.encode() if isinstance(payload, str) else msgspec.json.encode(payload)


def request_name_in(body: bytes) -> str | None:
    """Return the name of the request in a body, if there is one."""
    match = NAME.search(body)
    return match[0].decode() if match else None
