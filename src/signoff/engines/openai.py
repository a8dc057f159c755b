"""Models behind an OpenAI-compatible address: where to ask, under which name, with which key."""

from __future__ import annotations

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
from signoff.engines.upstream import Sent, UpstreamClient
from signoff.errors import ModelUnreachable

_VERSION = re.compile(r"/v\d\w*(/|$)")


class OpenAIEngine:
    """Asks models over HTTP. Whoever made the `upstream` starts and closes it: other engines use it too."""

    def __init__(self, upstream: UpstreamClient) -> None:
        self._upstream = upstream

    def answer(self, model: Model, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """What the model says to `request`, byte for byte. Raises ModelFailed and its kin."""
        if not model.url:
            raise ModelUnreachable(f"The model {model.name} has no address.")
        return ask(self._upstream, model.url, model, request)

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""


def ask(upstream: UpstreamClient, base_url: str, model: Model, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
    """What the server at `base_url` answers to `request`: see `Upstream.post`.

    The body goes out as it came, a parcel's content as it was before it became one, but for the model's name where
    the server knows it by another.
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
    """Any method, with a query, and with whatever body: JSON, a parcel, or none at all, which a job keeps as null."""
    route = parse_route(request.path) or Route("POST", request.path, None)
    name, binary = upstream_name(model, request.target), decode_binary(request.body)
    if binary is None:
        body = named(request.body, name) if asks_for_a_model(request.body) else request.body
    else:
        body = with_form_field(binary, "model", name).content
    if body != b"null":
        headers |= {"content-type": "application/json" if binary is None else binary.content_type}
    url = address(base_url, route.path) + ("" if route.query is None else f"?{route.query}")
    sent = Sent(route.method, url, b"" if body == b"null" else body, headers)
    return upstream.ask(sent, timeouts=model.timeouts, stream=request.stream, json_only=False)


@lru_cache(maxsize=1024)
def address(base_url: str, path: str) -> str:
    """Where to ask for `path`, which begins with /v1: a base that names a version already takes its place."""
    base = base_url.rstrip("/")
    return base + (path.removeprefix("/v1") if _VERSION.search(urlsplit(base).path) else path)


def asks_for_a_model(body: bytes) -> bool:
    """Whether there is a "model" in it: beyond what is known here, nothing is added that may not belong there."""
    try:
        return "model" in _MEMBERS.decode(body)
    except (ValueError, RecursionError):
        return False


def named(body: bytes, name: str) -> bytes:
    """`body` with `name` as its "model"; all other members keep their bytes. What is no JSON object stays as it is."""
    model = msgspec.Raw(msgspec.json.encode(name))
    try:
        if _NAMED.decode(body).model == model:
            return body
        return msgspec.json.encode(_MEMBERS.decode(body) | {"model": model})
    except (ValueError, RecursionError):
        return body


class _Named(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"")


_NAMED = msgspec.json.Decoder(_Named)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
