"""Models behind an OpenAI-compatible URL."""

import re
from collections.abc import AsyncGenerator
from functools import lru_cache
from urllib.parse import urlsplit

import msgspec

from signoff.core.answer import Chunk
from signoff.core.binary import decode_binary, with_form_field
from signoff.core.endpoints import KNOWN, Route, parse_route
from signoff.core.model import Model, upstream_name
from signoff.engine import ModelRequest
from signoff.engines.upstream import UpstreamClient, UpstreamRequest
from signoff.errors import ModelUnreachable

_VERSION = re.compile(r"/v\d\w*(/|$)")


class OpenAIEngine:
    """Engine that calls models over HTTP. The caller starts and closes `upstream`, which other engines share."""

    def __init__(self, upstream: UpstreamClient) -> None:
        self._upstream = upstream

    def answer(self, model: Model, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the model's answer to `request`, byte for byte. Raises ModelFailed and its subclasses."""
        if not model.url:
            raise ModelUnreachable(f"The model {model.name} has no `url`.")
        return ask(self._upstream, model.url, model, request)

    async def start(self) -> None:
        """See `engine.Engine`: nothing to start."""

    async def close(self) -> None:
        """See `engine.Engine`: nothing to close."""


def ask(upstream: UpstreamClient, base_url: str, model: Model, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
    """Send `request` to the server at `base_url` and yield its answer: see `UpstreamClient.ask`.

    The body is sent as it is, except for the model's name where the upstream uses another one. A `BinaryBody` is
    decoded first.
    """
    headers = {"authorization": f"Bearer {request.key}"} if request.key else {}
    name = upstream_name(model, request.target)
    if request.path not in KNOWN:
        return _ask_beyond(upstream, base_url, model, request, headers)
    return upstream.post(
        address(base_url, request.path),
        body=named(request.body, name),
        headers=headers | {"content-type": "application/json"},
        timeouts=model.timeouts,
        stream=request.stream,
    )


def _ask_beyond(
    upstream: UpstreamClient, base_url: str, model: Model, request: ModelRequest, headers: dict[str, str]
) -> AsyncGenerator[Chunk, None]:
    """Send a request for an endpoint that is not in KNOWN.

    It has any method, may have a query, and has a body of any kind: JSON, a `BinaryBody`, or none, which a job stores
    as null.
    """
    route = parse_route(request.path) or Route("POST", request.path, None)
    name, binary = upstream_name(model, request.target), decode_binary(request.body)
    if binary is None:
        body = named(request.body, name) if asks_for_a_model(request.body) else request.body
    else:
        body = with_form_field(binary, "model", name).content
    if body != b"null":
        headers |= {"content-type": "application/json" if binary is None else binary.content_type}
    url = address(base_url, route.path) + ("" if route.query is None else f"?{route.query}")
    upstream_request = UpstreamRequest(route.method, url, b"" if body == b"null" else body, headers)
    return upstream.ask(upstream_request, timeouts=model.timeouts, stream=request.stream, json_only=False)


@lru_cache(maxsize=1024)
def address(base_url: str, path: str) -> str:
    """Return the URL for `path`, which starts with /v1. A version at the end of `base_url` replaces that /v1."""
    base = base_url.rstrip("/")
    return base + (path.removeprefix("/v1") if _VERSION.search(urlsplit(base).path) else path)


def asks_for_a_model(body: bytes) -> bool:
    """Return True if `body` has a member "model". For unknown endpoints, none is added to a body without one."""
    try:
        return "model" in _MEMBERS.decode(body)
    except (ValueError, RecursionError):
        return False


def named(body: bytes, name: str) -> bytes:
    """Return `body` with `name` as its "model". All other members keep their bytes.

    A body that is not a JSON object is returned unchanged.
    """
    model = msgspec.Raw(msgspec.json.encode(name))
    try:
        if _WITH_MODEL.decode(body).model == model:
            return body
        return msgspec.json.encode(_MEMBERS.decode(body) | {"model": model})
    except (ValueError, RecursionError):
        return body


class _WithModel(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"")


_WITH_MODEL = msgspec.json.Decoder(_WithModel)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
