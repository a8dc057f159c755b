"""Models of hosted providers with dialects of their own, through the any-llm library (the extra `anyllm`)."""

from __future__ import annotations

import asyncio
import importlib
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, cast

import msgspec
from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver
from yarl import URL

from signoff.core import sse
from signoff.core.allow_list import MODEL_ADDRESSES, checked_host
from signoff.core.answer import Chunk
from signoff.core.endpoints import CHAT, EMBEDDINGS
from signoff.core.model import Model, upstream_name
from signoff.engine import ModelRequest
from signoff.errors import (
    AddressRefused,
    ModelAnswered,
    ModelCut,
    ModelFailed,
    ModelTimedOut,
    ModelUnreachable,
    SignoffError,
)
from signoff.infra.ssrf import AddressBlocked, CheckedResolver

MISSING = "Models of the kind anyllm need the extra of that name: pip install 'signoff[anyllm]'."
CLIENTS = 64
MAX_ERROR_CHARS = 2000
CLOSE_SECONDS = 2
# What a caller may say. The library takes more (addresses, headers, keys), which is the operator's to say.
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
    """Asks the provider that a model's upstream name begins with: `anthropic/claude-…`."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver
        self._clients = _Clients()

    async def start(self) -> None:
        """Nothing to start: the library is loaded when it is first needed."""

    async def answer(self, model: Model, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """What the provider says, in OpenAI's dialect. Raises ModelFailed and its kin."""
        provider, _, name = upstream_name(model, request.target).partition("/")
        known = (provider, request.key, model.url)
        loop, began = asyncio.get_running_loop(), False
        limits = model.timeouts
        end = loop.time() + limits.total_seconds
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout_at(end):
                    await self._check_address(model)
                    client = await stack.enter_async_context(self._clients.one(known))
                async with asyncio.timeout_at(min(end, loop.time() + limits.first_byte_seconds)):
                    said = await _asked(client, name, request)
                if not hasattr(said, "__aiter__"):
                    yield Chunk(said.model_dump_json(exclude_none=True).encode())
                    return
                pieces = await stack.enter_async_context(aclosing(said))
                while True:
                    seconds = limits.between_chunks_seconds if began else limits.first_byte_seconds
                    async with asyncio.timeout_at(min(end, loop.time() + seconds)):
                        piece = await anext(pieces, None)
                    if piece is None:
                        break
                    began = True
                    yield Chunk(sse.event(piece.model_dump_json(exclude_none=True).encode()), event=True)
            yield Chunk(sse.DONE, event=True)
        except SignoffError:
            raise
        except TimeoutError as error:
            raise ModelTimedOut("The model took too long.") from error
        except Exception as error:
            raise _failure(error, began=began) from error

    async def _check_address(self, model: Model) -> None:
        """As far as it can be checked here: the connection is the library's."""
        if not model.url:
            return
        try:
            host, port = checked_host(model.url, MODEL_ADDRESSES), URL(model.url).port or 443
            await CheckedResolver(self._resolver or ThreadedResolver(), MODEL_ADDRESSES).resolve(host, port)
        except (AddressRefused, AddressBlocked) as error:
            raise ModelFailed("The model's address is one where no model may be.") from error
        except OSError as error:
            raise ModelUnreachable("The model cannot be reached: its name is not known.") from error

    async def close(self) -> None:
        """Closes what the library keeps open."""
        await self._clients.close()


Known = tuple[str, str | None, str | None]


class _Clients:
    """The library's clients by provider, key and address: the CLIENTS that were used last, and those in use."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._kept = dict[Known, Any]()
        self._users = Counter[Known]()

    @asynccontextmanager
    async def one(self, known: Known) -> AsyncGenerator[Any, None]:
        """A client for as long as the block runs; the first one loads the library. Raises ModelFailed."""
        async with self._lock:
            if known not in self._kept:
                self._kept[known] = await asyncio.to_thread(_client, *known)
            self._kept[known] = self._kept.pop(known)
            self._users[known] += 1
        try:
            yield self._kept[known]
        finally:
            self._users -= Counter([known])
            await self._close_unused(len(self._kept) - CLIENTS)

    async def close(self) -> None:
        """Closes all of them, used or not."""
        while self._kept:
            await _close(self._kept.popitem()[1])

    async def _close_unused(self, count: int) -> None:
        """Closes as many as `count` that nobody uses, the longest unused first."""
        unused = [known for known in self._kept if known not in self._users]
        for client in [self._kept.pop(known) for known in unused[: max(0, count)]]:
            await _close(client)


def _client(provider: str, key: str | None, url: str | None) -> Any:
    """The library's way to a provider; retries are ours. Raises ModelFailed."""
    try:
        library: Any = importlib.import_module("any_llm").AnyLLM
    except ImportError:
        raise ModelFailed(MISSING) from None
    retries = library.get_provider_class(provider).MAX_RETRIES_SUPPORT
    more = {} if retries == "unsupported" else {"max_retries": 0}
    return library.create(provider, api_key=key, api_base=url, unified_exceptions=True, **more)


async def _asked(client: Any, name: str, request: ModelRequest) -> Any:
    """The library's answer, or its stream. Raises ModelAnswered for what it cannot be asked."""
    members = msgspec.json.decode(request.body)
    if not isinstance(members, dict):
        raise _refused(400, "The body is a JSON object.")
    told: dict[str, Any] = {key: value for key, value in cast("dict[str, Any]", members).items() if key != "model"}
    known = {CHAT: CHAT_FIELDS, EMBEDDINGS: EMBEDDING_FIELDS}.get(request.path)
    if known is None:
        raise _refused(404, f"Models of the kind anyllm know no {request.path}.")
    if strange := sorted(told.keys() - known):
        raise _refused(400, f"Models of the kind anyllm take no {strange[0]!r}.")
    if request.path == EMBEDDINGS:
        return await client.aembedding(name, told.pop("input", ""), **told)
    stream = {"stream": True} if request.stream else {}
    told.pop("stream", None)
    return await client.acompletion(model=name, messages=told.pop("messages", []), **told, **stream)


def _refused(status: int, message: str) -> ModelAnswered:
    kind = "invalid_request_error" if status < 500 else "upstream_error"
    body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": None}})
    return ModelAnswered(status, message, body=body)


def _failure(error: Exception, *, began: bool) -> ModelFailed:
    """An error of the library under our name for it."""
    message = str(getattr(error, "message", "") or error)[:MAX_ERROR_CHARS]
    status = getattr(error, "status_code", None)
    match type(error).__name__:
        case _ if isinstance(status, int) and 400 <= status < 600:
            told = _refused(status, message)
            told.retry_after_seconds = _seconds(getattr(error, "retry_after", None))
            return told
        case "InvalidRequestError" | "UnsupportedParameterError" | "ValidationError":
            return _refused(400, message)
        case "NotImplementedError":
            return _refused(404, "This provider knows no such endpoint.")
        case "MissingApiKeyError" | "UnsupportedProviderError" | "ImportError" | "ModuleNotFoundError":
            return ModelFailed(message)
        case _ if began:
            return ModelCut()
        case _:
            return ModelUnreachable(f"The model cannot be reached: {type(_cause(error)).__name__}.")


def _cause(error: Exception) -> BaseException:
    """Its name alone is told: a message may name addresses of ours."""
    return getattr(error, "original_exception", None) or error


def _seconds(retry_after: object) -> float | None:
    with suppress(TypeError, ValueError):
        return max(0.0, float(str(retry_after)))
    return None


async def _close(client: Any) -> None:
    closing = getattr(getattr(client, "client", None), "close", None)
    if closing is not None:
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await closing()
