"""Models of hosted providers with dialects of their own, through the any-llm library (the extra `anyllm`)."""

import asyncio
import importlib
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, cast

import msgspec
from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver
from yarl import URL

from signoff.core import sse
from signoff.core.allow_list import MODEL_ADDRESSES, checked_host
from signoff.core.api_paths import CHAT, EMBEDDINGS
from signoff.core.model import Model, TimeLimit, Timeouts, upstream_name
from signoff.engine import ModelRequest, Sink
from signoff.engines.upstream_errors import answered_error
from signoff.engines.url import ADDRESS_NOT_ALLOWED
from signoff.errors import (
    AddressRefused,
    ModelAnswered,
    ModelCut,
    ModelFailed,
    ModelTimedOut,
    ModelUnreachable,
    SignoffError,
)
from signoff.infra.program import install_hint
from signoff.infra.ssrf import AddressBlocked, CheckedResolver

EXTRA_MISSING = f"Models of the kind anyllm need its library; {install_hint('anyllm')}."
MAX_CLIENTS = 64
MAX_ERROR_CHARS = 2000
CLOSE_SECONDS = 2
# Parameters that a caller may set. The library has more (addresses, headers, keys), which only the operator may set.
CHAT_FIELDS = frozenset(
    [
        *("frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages"),
        *("n", "parallel_tool_calls", "presence_penalty", "prompt_cache_key", "reasoning_effort", "response_format"),
        *("seed", "service_tier", "stop", "stream", "stream_options", "temperature"),
        *("tool_choice", "tools", "top_logprobs", "top_p", "user"),
    ]
)
EMBEDDING_FIELDS = frozenset(["input", "dimensions", "encoding_format", "user"])


class AnyLLMEngine:
    """Engine that calls the provider named in a model's upstream name: `anthropic/claude-…`."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver
        self._clients = _Clients()

    async def start(self) -> None:
        """See `engine.Engine`: nothing to start, since the library is loaded on first use."""

    async def answer(self, model: Model, request: ModelRequest, sink: Sink) -> bytes | None:
        """Return or send the provider's answer in the format of OpenAI's API. Raises ModelFailed and its subclasses."""
        provider, _, name = upstream_name(model, request.target).partition("/")
        client_key = (provider, request.key, model.url)
        loop, limits = asyncio.get_running_loop(), model.timeouts
        end = loop.time() + limits.total_seconds
        try:
            async with _time_limit(limits, "total_seconds", end):
                await self._check_address(model)
            async with self._clients.borrow(client_key, end) as client:
                async with _time_limit(limits, "first_byte_seconds", end):
                    answer = await _send(client, name, request)
                if not hasattr(answer, "__aiter__"):
                    return answer.model_dump_json(exclude_none=True).encode()
                await _pass_on_events(answer, sink, limits, end)
        except SignoffError:
            raise
        except TimeoutError as error:
            raise ModelTimedOut(f"The model {limits.fault('total_seconds')}.") from error
        except Exception as error:
            raise _map_error(error, has_begun=False) from error
        await sink.send([sse.DONE])
        return None

    async def _check_address(self, model: Model) -> None:
        """Resolve and check the model's `url` before the library connects to it. Raises ModelFailed, ModelUnreachable.

        The library opens the connection itself, so the address may change between this check and the connection.
        """
        if not model.url:
            return
        try:
            host, port = checked_host(model.url, MODEL_ADDRESSES), URL(model.url).port or 443
            await CheckedResolver(self._resolver or ThreadedResolver(), MODEL_ADDRESSES).resolve(host, port)
        except (AddressRefused, AddressBlocked) as error:
            raise ModelFailed(ADDRESS_NOT_ALLOWED) from error
        except OSError as error:
            raise ModelUnreachable("The model cannot be reached: its host name does not resolve.") from error

    async def close(self) -> None:
        """Close all clients of the library."""
        await self._clients.close()


ClientKey = tuple[str, str | None, str | None]


class _Clients:
    """Cache of the library's clients by provider, key and URL: the MAX_CLIENTS used last, and all those in use."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._clients = dict[ClientKey, Any]()
        self._users = Counter[ClientKey]()

    @asynccontextmanager
    async def borrow(self, key: ClientKey, deadline: float) -> AsyncGenerator[Any, None]:
        """Lend a client for the duration of the block; the first call loads the library.

        Raises ModelFailed, and TimeoutError if the client is not there by `deadline` on the loop's clock.
        """
        async with asyncio.timeout_at(deadline), self._lock:
            if key not in self._clients:
                self._clients[key] = await asyncio.to_thread(_client, *key)
            self._clients[key] = self._clients.pop(key)
            self._users[key] += 1
        try:
            yield self._clients[key]
        finally:
            self._users -= Counter([key])
            await self._close_unused(len(self._clients) - MAX_CLIENTS)

    async def close(self) -> None:
        """Close all clients, including those in use."""
        while self._clients:
            await _close(self._clients.popitem()[1])

    async def _close_unused(self, count: int) -> None:
        """Close up to `count` clients that are not in use, least recently used first."""
        unused = [key for key in self._clients if key not in self._users]
        for client in [self._clients.pop(key) for key in unused[: max(0, count)]]:
            await _close(client)


def _client(provider: str, key: str | None, url: str | None) -> Any:
    """Create the library's client for a provider, with its own retries off. Raises ModelFailed."""
    try:
        library: Any = importlib.import_module("any_llm").AnyLLM
    except ImportError:
        raise ModelFailed(EXTRA_MISSING) from None
    retries = library.get_provider_class(provider).MAX_RETRIES_SUPPORT
    more = {} if retries == "unsupported" else {"max_retries": 0}
    return library.create(provider, api_key=key, api_base=url, unified_exceptions=True, **more)


async def _send(client: Any, name: str, request: ModelRequest) -> Any:
    """Return the library's response, or its stream.

    Raises ModelAnswered for a request that the library does not support.
    """
    members = msgspec.json.decode(request.body)
    if not isinstance(members, dict):
        raise _model_error(400, "The request body must be a JSON object.")
    params: dict[str, Any] = {key: value for key, value in cast("dict[str, Any]", members).items() if key != "model"}
    allowed = {CHAT: CHAT_FIELDS, EMBEDDINGS: EMBEDDING_FIELDS}.get(request.path)
    if allowed is None:
        raise _model_error(404, f"Models of the kind anyllm do not support the endpoint {request.path}.")
    if unknown := sorted(params.keys() - allowed):
        raise _model_error(400, f"Models of the kind anyllm do not support the parameter {unknown[0]!r}.")
    if request.path == EMBEDDINGS:
        return await client.aembedding(name, params.pop("input", ""), **params)
    stream = {"stream": True} if request.stream else {}
    params.pop("stream", None)
    return await client.acompletion(model=name, messages=params.pop("messages", []), **params, **stream)


@asynccontextmanager
async def _time_limit(limits: Timeouts, limit: TimeLimit, end: float) -> AsyncGenerator[None]:
    """Limit the time of the block by `limit`, and by `end` on the loop's clock. Raises ModelTimedOut."""
    due = asyncio.get_running_loop().time() + getattr(limits, limit)
    try:
        async with asyncio.timeout_at(min(due, end)):
            yield
    except TimeoutError as error:
        raise ModelTimedOut(f"The model {limits.fault('total_seconds' if end <= due else limit)}.") from error


async def _pass_on_events(stream: Any, sink: Sink, limits: Timeouts, end: float) -> None:
    """Send the chunks of the library's stream to `sink`. Raises ModelFailed and its subclasses."""
    has_begun = False
    async with aclosing(stream):
        while True:
            limit = "between_chunks_seconds" if has_begun else "first_byte_seconds"
            try:
                async with _time_limit(limits, limit, end):
                    chunk = await anext(stream, None)
            except ModelTimedOut:
                raise
            except Exception as error:
                raise _map_error(error, has_begun=has_begun) from error
            if chunk is None:
                return
            has_begun = True
            await sink.send([sse.event(chunk.model_dump_json(exclude_none=True).encode())])


def _model_error(status: int, message: str) -> ModelAnswered:
    kind = "invalid_request_error" if status < 500 else "upstream_error"
    body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": None}})
    return answered_error(status, body)


def _map_error(error: Exception, *, has_begun: bool) -> ModelFailed:
    """Return the error of ours for an error of the library; `has_begun` is True after the first chunk of a stream."""
    message = str(getattr(error, "message", "") or error)[:MAX_ERROR_CHARS]
    status = getattr(error, "status_code", None)
    match type(error).__name__:
        case _ if isinstance(status, int) and 400 <= status < 600:
            answered = _model_error(status, message)
            answered.retry_after_seconds = _parse_retry_after(getattr(error, "retry_after", None))
            return answered
        case "InvalidRequestError" | "UnsupportedParameterError" | "ValidationError":
            return _model_error(400, message)
        case "NotImplementedError":
            return _model_error(404, "The provider does not support this endpoint.")
        case "MissingApiKeyError" | "UnsupportedProviderError" | "ImportError" | "ModuleNotFoundError":
            return ModelFailed(message)
        case _ if has_begun:
            return ModelCut()
        case _:
            return ModelUnreachable(f"The model cannot be reached: {type(_cause(error)).__name__}.")


def _cause(error: Exception) -> BaseException:
    """Return the original error, of which only the type may be shown: its message may contain internal addresses."""
    return getattr(error, "original_exception", None) or error


def _parse_retry_after(retry_after: object) -> float | None:
    """Return a Retry-After value as seconds, or None if it is not a number."""
    with suppress(TypeError, ValueError):
        return max(0.0, float(str(retry_after)))
    return None


async def _close(client: Any) -> None:
    closing = getattr(getattr(client, "client", None), "close", None)
    if closing is not None:
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await closing()
