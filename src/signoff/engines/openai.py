"""Models behind an OpenAI-compatible address: where to ask, under which name, with which key."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import msgspec

from signoff.core.answer import Chunk
from signoff.core.endpoint import KNOWN
from signoff.core.parcel import unwrapped, with_field
from signoff.core.target import Model, upstream_name
from signoff.engine import Request
from signoff.engines.upstream import Upstream
from signoff.errors import ModelUnreachable

_VERSION = re.compile(r"/v\d\w*(/|$)")


class OpenAIEngine:
    """Asks models over HTTP. Whoever made the `upstream` starts and closes it: other engines use it too."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def answer(self, model: Model, request: Request) -> AsyncGenerator[Chunk, None]:
        """What the model says to `request`, byte for byte. Raises ModelFailed and its kin."""
        if not model.url:
            raise ModelUnreachable(f"The model {model.name} has no address.")
        return ask(self._upstream, model.url, model, request)

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""


def ask(upstream: Upstream, base_url: str, model: Model, request: Request) -> AsyncGenerator[Chunk, None]:
    """What the server at `base_url` answers to `request`: see `Upstream.post`.

    The body goes out as it came, a parcel's content as it was before it became one, but for the model's name where
    the server knows it by another.
    """
    name = upstream_name(model, request.target)
    parcel = None if request.path in KNOWN else unwrapped(request.body)
    headers = {"content-type": "application/json" if parcel is None else parcel.content_type}
    if request.key:
        headers["authorization"] = f"Bearer {request.key}"
    return upstream.post(
        address(base_url, request.path),
        body=named(request.body, name) if parcel is None else with_field(parcel, "model", name).content,
        headers=headers,
        timeouts=model.timeouts,
        stream=request.stream,
        json_only=request.path in KNOWN,
    )


def address(base_url: str, path: str) -> str:
    """Where to ask for `path`, which begins with /v1: a base that names a version already takes its place."""
    base = base_url.rstrip("/")
    return base + (path.removeprefix("/v1") if _VERSION.search(urlsplit(base).path) else path)


def named(body: bytes, name: str) -> bytes:
    """`body` with `name` as its "model"; all other members keep their bytes. What is no JSON object stays as it is."""
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return body
    model = msgspec.Raw(msgspec.json.encode(name))
    if members.get("model") == model:
        return body
    return msgspec.json.encode(members | {"model": model})
