"""Cached calls: `/api/openai/{endpoint}` asks a model and caches the answer; `/api/cache` looks in the cache alone."""

from urllib.parse import parse_qs

import msgspec

from signoff.core.access import Caller
from signoff.core.api_paths import KNOWN
from signoff.core.ask import Ask
from signoff.core.cache import CacheFilter, Sampling
from signoff.core.dialects.answer import content_or_json
from signoff.doors.callers import caller_of
from signoff.doors.errors import detail, raw_error_headers
from signoff.doors.http import (
    AsgiDoor,
    ClientWatch,
    Receive,
    Scope,
    Send,
    cache_control_of,
    header,
    is_retry,
    parse_json,
    read_body,
    send_json,
    wait_seconds_of,
)
from signoff.doors.openai.responses import call_headers
from signoff.errors import BadRequest, MethodNotAllowed, NotFound, SignoffError
from signoff.work.admin.cache import clear_cache, get_cache_size
from signoff.work.call import begin_call, lookup_cached, whole_answer
from signoff.work.inference.caching import until_stored

OPENAI, CACHE = "/api/openai/", "/api/cache"
PREFIXES = (OPENAI, CACHE)


class RequestHead(Sampling, frozen=True):
    """Members of a request that say whether and how it is cached."""

    model: str | None = None
    """Name of the model; None for the default model."""
    stream: msgspec.Raw = msgspec.Raw(b"false")
    """Value of `stream`, of any type."""


class CachedDoor(AsgiDoor):
    """The door at `/api/openai/` and `/api/cache`."""

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"].rstrip("/"), scope["method"]
        caller = await caller_of(self._services, self._door_settings, scope)
        if path == CACHE:
            await self._measure_or_clear(scope, send, caller)
            return
        door, _, rest = path.removeprefix("/api/").partition("/")
        endpoint = f"/{rest.removeprefix('openai/')}"
        if door not in {"openai", "cache"} or endpoint not in KNOWN:
            raise NotFound(f"The path {path} does not exist; the endpoints are {', '.join(sorted(KNOWN))}.")
        if method != "POST":
            raise MethodNotAllowed.at(path, method, "POST")
        body = await read_body(scope, receive, self._door_settings.max_body_bytes)
        ask = _ask(scope, caller, endpoint, body, requires_members=door == "openai")
        if door == "cache":
            job = await lookup_cached(self._services, ask)
            hits = [] if job is None else [{"response": content_or_json(job.response or b"null"), "cache_hit": True}]
            await send_json(send, hits)
        else:
            await self._answer(scope, receive, send, ask)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, ask: Ask) -> None:
        with ClientWatch(self._services, scope, receive):
            call = await begin_call(self._services, ask)
            answer, job = await whole_answer(self._services, call), call.job
            await until_stored(self._services, job)
            payload = {"response": content_or_json(answer), "cache_hit": job.cache == "hit"}
            await send_json(send, payload, call_headers(call))

    async def _measure_or_clear(self, scope: Scope, send: Send, caller: Caller) -> None:
        """Send the size of the cache, or delete entries: those of the caller; for admins, those of a user or of all."""
        if scope["method"] not in {"GET", "DELETE"}:
            raise MethodNotAllowed.at(CACHE, scope["method"], "DELETE, GET, HEAD")
        parameters = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        query = {name: values[-1] for name, values in parameters.items()}
        if unknown := sorted(query.keys() - {"key", "user", "model", "target"}):
            raise BadRequest(f"Unknown query parameter `{unknown[0]}`; use `key`, `user`, `model` or `target`.")
        if empty := sorted(name for name, value in query.items() if not value):
            raise BadRequest(f"The query parameter `{empty[0]}` must not be empty; leave it out to match everything.")
        cache_filter = CacheFilter(key=query.get("key"), model=query.get("model"), target=query.get("target"))
        if scope["method"] == "DELETE":
            deleted = await clear_cache(self._services, caller, cache_filter, query.get("user"))
            await send_json(send, {"deleted": deleted})
        else:
            await send_json(send, await get_cache_size(self._services, caller, cache_filter, query.get("user")))

    async def _send_error(self, scope: Scope, send: Send, error: SignoffError) -> None:
        await send_json(send, detail(error), raw_error_headers(error), status=error.status)


def _ask(scope: Scope, caller: Caller, endpoint: str, body: bytes, *, requires_members: bool) -> Ask:
    request = parse_json(body, RequestHead, "request")
    return Ask(
        door="cached",
        caller=caller,
        headers=scope["headers"],
        path=endpoint,
        body=body,
        requires_members=requires_members,
        target=request.model,
        stream=bytes(request.stream) == b"true",
        lane="now",
        idempotency_key=header(scope, b"idempotency-key"),
        wait_seconds=wait_seconds_of(scope),
        is_retry=is_retry(scope),
        cache="always",
        cache_control=cache_control_of(scope),
        sampling=request,
    )
