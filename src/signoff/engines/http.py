"""Models at any HTTP address that takes JSON and returns JSON. The body is passed on unchanged."""

from signoff.core.model import Model
from signoff.engine import ModelRequest, Sink
from signoff.engines.upstream import UpstreamClient, UpstreamRequest
from signoff.errors import ModelUnreachable


class HttpEngine:
    """Engine that posts the body to a model's `url`. The caller starts and closes `upstream`."""

    def __init__(self, upstream: UpstreamClient) -> None:
        self._upstream = upstream

    async def answer(self, model: Model, request: ModelRequest, sink: Sink) -> bytes | None:
        """Return or send the model's answer to the body, whatever its path. Raises ModelFailed and its subclasses."""
        if not model.url:
            raise ModelUnreachable(f"The model {model.name} has no `url`.")
        headers = {"content-type": "application/json"}
        if request.key:
            headers["authorization"] = f"Bearer {request.key}"
        upstream_request = UpstreamRequest("POST", model.url, request.body, headers)
        return await self._upstream.ask(upstream_request, sink, timeouts=model.timeouts, stream=request.stream)

    async def start(self) -> None:
        """See `engine.Engine`: nothing to start."""

    async def close(self) -> None:
        """See `engine.Engine`: nothing to close."""
