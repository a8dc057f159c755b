"""The door of the watchful eye: `/api/openai/{endpoint}` caches unless told not to, `/api/cache/{endpoint}` looks."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import msgspec

from signoff.core.access import Caller
from signoff.core.answer import content_or_json
from signoff.core.ask import Ask
from signoff.core.cache import CacheFilter, Sampling
from signoff.core.endpoints import KNOWN
from signoff.doors.http import (
    DoorSettings,
    Receive,
    Scope,
    Send,
    cache_control_of,
    caller_of,
    decoded,
    error_headers,
    header,
    in_dialect,
    leaving,
    not_allowed,
    read_body,
    send_json,
    wait_seconds_of,
)
from signoff.doors.openai.responses import call_headers, whole_answer
from signoff.errors import BadRequest, NotFound, SignoffError
from signoff.work.admin.cache import clear_cache, get_cache_size
from signoff.work.call import begin_call, lookup_cached
from signoff.work.inference.caching import until_stored
from signoff.work.services import Services

OPENAI, CACHE = "/api/openai/", "/api/cache"
PREFIXES = (OPENAI, CACHE)


class _Peek(Sampling, frozen=True):
    model: str | None = None
    stream: msgspec.Raw = msgspec.Raw(b"false")


class CachedDoor:
    """Answers under `/api/openai/` and `/api/cache`."""

    def __init__(self, services: Services, door_settings: DoorSettings) -> None:
        self._services = services
        self._door_settings = door_settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await in_dialect(self._route, scope, receive, send, send_error)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"].rstrip("/"), scope["method"]
        caller = await caller_of(self._services, self._door_settings, scope)
        if path == CACHE and method in {"GET", "DELETE"}:
            await self._look_after(scope, send, caller)
            return
        door, _, rest = path.removeprefix("/api/").partition("/")
        endpoint = f"/{rest.removeprefix('openai/')}"
        if door not in {"openai", "cache"} or endpoint not in KNOWN:
            raise NotFound(f"There is no {method} {path} here; endpoints are {', '.join(sorted(KNOWN))}.")
        if method != "POST":
            raise not_allowed(method)
        body = await read_body(scope, receive, self._door_settings.max_body_bytes)
        ask = _ask(scope, caller, endpoint, body)
        if door == "cache":
            job = await lookup_cached(self._services, ask)
            found = [] if job is None else [{"response": content_or_json(job.response or b"null"), "cache_hit": True}]
            await send_json(send, found)
        else:
            await self._answer(receive, send, ask)

    async def _answer(self, receive: Receive, send: Send, ask: Ask) -> None:
        async with leaving(self._services, receive):
            call = await begin_call(self._services, ask)
            answer, job = await whole_answer(self._services, call), call.inflight.job
            await until_stored(self._services, job)
            told = {"response": content_or_json(answer), "cache_hit": job.cache == "hit"}
            await send_json(send, told, call_headers(call))

    async def _look_after(self, scope: Scope, send: Send, caller: Caller) -> None:
        """How much is kept, or forgetting it: of the caller, or of all and any for an admin."""
        told = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        asked = {name: values[-1] for name, values in told.items()}
        if unknown := sorted(asked.keys() - {"key", "user", "model", "target"}):
            raise BadRequest(f"There is no {unknown[0]!r} to choose by; there are key, user, model and target.")
        if "" in asked.values():
            raise BadRequest("What is left empty chooses nothing.")
        which = CacheFilter(key=asked.get("key"), model=asked.get("model"), target=asked.get("target"))
        if scope["method"] == "DELETE":
            deleted = await clear_cache(self._services, caller, which, asked.get("user"))
            await send_json(send, {"deleted": deleted})
        else:
            await send_json(send, await get_cache_size(self._services, caller, which, asked.get("user")))


def _ask(scope: Scope, caller: Caller, endpoint: str, body: bytes) -> Ask:
    peek = decoded(body, _Peek, "The body cannot be asked")
    return Ask(
        door="cached",
        caller=caller,
        path=endpoint,
        body=body,
        target=peek.model,
        stream=bytes(peek.stream) == b"true",
        lane="now",
        idempotency_key=header(scope, b"idempotency-key"),
        wait_seconds=wait_seconds_of(scope),
        cache="always",
        cache_control=cache_control_of(scope),
        sampling=peek,
    )


async def send_error(send: Send, error: SignoffError) -> None:
    """An error in this door's dialect."""
    body: dict[str, Any] = {"detail": error.message, "code": error.code}
    told = body if error.job_id is None else body | {"job_id": error.job_id}
    headers = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    await send_json(send, told, headers, status=error.status)
