"""Models behind any address that takes JSON and gives JSON: the body goes there as it came."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from signoff.core.answer import Chunk
from signoff.core.model import Model
from signoff.engine import ModelRequest
from signoff.engines.upstream import UpstreamClient
from signoff.errors import ModelUnreachable


class HttpEngine:
    """Asks models over HTTP. Whoever made the `upstream` starts and closes it."""

    def __init__(self, upstream: UpstreamClient) -> None:
        self._upstream = upstream

    def answer(self, model: Model, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """What the model says to the body, whatever path was asked for. Raises ModelFailed and its kin."""
        if not model.url:
            raise ModelUnreachable(f"The model {model.name} has no address.")
        headers = {"content-type": "application/json"}
        if request.key:
            headers["authorization"] = f"Bearer {request.key}"
        return self._upstream.post(
            model.url, body=request.body, headers=headers, timeouts=model.timeouts, stream=request.stream
        )

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""
