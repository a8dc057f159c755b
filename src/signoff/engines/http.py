"""Models at any HTTP address that takes JSON and returns JSON. The body is passed on unchanged."""

from collections.abc import AsyncGenerator

from signoff.core.answer import Chunk
from signoff.core.model import Model
from signoff.engine import ModelRequest
from signoff.engines.upstream import UpstreamClient
from signoff.errors import ModelUnreachable


class HttpEngine:
    """Engine that posts the body to a model's `url`. The caller starts and closes `upstream`."""

    def __init__(self, upstream: UpstreamClient) -> None:
        self._upstream = upstream

    def answer(self, model: Model, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the model's answer to the body, whatever the request's path. Raises ModelFailed and its subclasses."""
        if not model.url:
            raise ModelUnreachable(f"The model {model.name} has no `url`.")
        headers = {"content-type": "application/json"}
        if request.key:
            headers["authorization"] = f"Bearer {request.key}"
        return self._upstream.post(
            model.url, body=request.body, headers=headers, timeouts=model.timeouts, stream=request.stream
        )

    async def start(self) -> None:
        """See `engine.Engine`: nothing to start."""

    async def close(self) -> None:
        """See `engine.Engine`: nothing to close."""
