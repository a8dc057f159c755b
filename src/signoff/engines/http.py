"""Models at any HTTP address that takes JSON and returns JSON. The body is passed on unchanged."""

from collections.abc import Sequence

import msgspec

from signoff.core.model import Model
from signoff.engine import ModelRequest, Sink
from signoff.engines.http_request import UpstreamRequest
from signoff.engines.upstream import UpstreamClient
from signoff.errors import ModelFailed, ModelGarbled, ModelUnreachable

OPERATION_SECONDS = 5.0


class HttpEngine:
    """Engine that posts the body to a model's `url`. The caller starts and closes `upstream`."""

    def __init__(self, upstream: UpstreamClient) -> None:
        self._upstream = upstream

    async def answer(self, model: Model, request: ModelRequest, sink: Sink) -> bytes | None:
        """Return or send the model's answer to the body, whatever its path. Raises ModelFailed and its subclasses."""
        if not model.url:
            raise ModelUnreachable(f"The model {model.name} has no `url`; set it.")
        headers = _headers(request.key) | dict(request.headers)
        upstream_request = UpstreamRequest("POST", model.url, request.body, headers, request.response_headers)
        return await self._upstream.ask(upstream_request, sink, timeouts=model.timeouts, stream=request.stream)

    async def operate(self, model: Model, operation: str, key: str | None) -> bytes | None:
        """See `engine.OperationEngine`. GET for `get…`, else POST, to the path of the operation below `url`."""
        if not model.url:
            return None
        base, _, query = model.url.partition("?")
        url = f"{base.rstrip('/')}/{operation}" + (f"?{query}" if query else "")
        method = "GET" if operation.startswith("get") else "POST"
        timeouts = msgspec.structs.replace(model.timeouts, total_seconds=OPERATION_SECONDS)
        try:
            request = UpstreamRequest(method, url, b"", _headers(key))
            return await self._upstream.ask(request, _ForbiddenSink(), timeouts=timeouts, stream=False)
        except ModelFailed:
            return None

    async def start(self) -> None:
        """See `engine.Engine`: nothing to start."""

    async def close(self) -> None:
        """See `engine.Engine`: nothing to close."""


class _ForbiddenSink:
    """Sink for a request that asks for no stream."""

    async def send(self, events: Sequence[bytes]) -> None:
        raise ModelGarbled("The model sent a stream as the answer to an operation.")


def _headers(key: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    return headers if key is None else headers | {"authorization": f"Bearer {key}"}
