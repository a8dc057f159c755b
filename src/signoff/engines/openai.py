"""Models behind an OpenAI-compatible URL."""

import msgspec

from signoff.core.api_paths import KNOWN, Route, parse_route
from signoff.core.binary import decode_binary
from signoff.core.form import with_field
from signoff.core.model import Model, upstream_name
from signoff.engine import ModelRequest, Sink
from signoff.engines.http_request import UpstreamRequest
from signoff.engines.upstream import UpstreamClient
from signoff.engines.upstream_answers import check_answer
from signoff.engines.url import is_messages_route, key_headers, path_url
from signoff.errors import ModelUnreachable

# The version of Anthropic's API that its documentation and its clients name; without one, its servers refuse a request.
ANTHROPIC_VERSION = "2023-06-01"


class OpenAIEngine:
    """Engine that calls models over HTTP. The caller starts and closes `upstream`, which other engines share."""

    def __init__(self, upstream: UpstreamClient) -> None:
        self._upstream = upstream

    async def answer(self, model: Model, request: ModelRequest, sink: Sink) -> bytes | None:
        """Return or send the model's answer, byte for byte. Raises ModelFailed and its subclasses."""
        if not model.url:
            raise ModelUnreachable(f"The model {model.name} has no `url`; set it.")
        return await ask(self._upstream, model.url, model, request, sink)

    async def start(self) -> None:
        """See `engine.Engine`: nothing to start."""

    async def close(self) -> None:
        """See `engine.Engine`: nothing to close."""


async def ask(upstream: UpstreamClient, base_url: str, model: Model, request: ModelRequest, sink: Sink) -> bytes | None:
    """Send `request` to the server at `base_url`; return or send its answer: see `UpstreamClient.ask`.

    The body is sent as it is, except for the model's name where the upstream uses another one. A `BinaryBody` is
    decoded first.
    """
    is_known = request.path in KNOWN
    upstream_request = (
        _known_request(base_url, model, request) if is_known else _other_request(base_url, model, request)
    )
    _add_headers(upstream_request.headers, base_url, request)
    answer = await upstream.ask(
        upstream_request, sink, timeouts=model.timeouts, stream=request.stream, json_only=is_known
    )
    if answer is not None:
        check_answer(request.path, answer)
    return answer


def _known_request(base_url: str, model: Model, request: ModelRequest) -> UpstreamRequest:
    body = with_model(request.body, upstream_name(model, request.target))
    headers = {"content-type": "application/json"}
    return UpstreamRequest("POST", path_url(base_url, request.path), body, headers, request.response_headers)


def _other_request(base_url: str, model: Model, request: ModelRequest) -> UpstreamRequest:
    """Return a request for an endpoint that is not in KNOWN.

    It has any method, may have a query, and has a body of any kind: JSON, a `BinaryBody`, or none, which a job stores
    as null. A JSON body without a member "model" gets none.
    """
    route = parse_route(request.path) or Route("POST", request.path, None)
    name, binary = upstream_name(model, request.target), decode_binary(request.body)
    if binary is None:
        body = with_model(request.body, name) if has_model(request.body) else request.body
    else:
        body = with_field(binary, "model", name)
    headers = dict[str, str]()
    if body != b"null":
        headers["content-type"] = "application/json" if binary is None else binary.content_type
    url = path_url(base_url, route.path, route.query)
    return UpstreamRequest(route.method, url, b"" if body == b"null" else body, headers, request.response_headers)


def _add_headers(headers: dict[str, str], base_url: str, request: ModelRequest) -> None:
    """Add the headers of the caller, and the upstream key where this upstream reads it."""
    path = request.path.rpartition(" ")[2].partition("?")[0]
    if is_messages_route(path):
        headers["anthropic-version"] = ANTHROPIC_VERSION
    headers.update(request.headers)
    if request.key:
        for name in key_headers(base_url, path):
            headers[name] = f"Bearer {request.key}" if name == "authorization" else request.key


def has_model(body: bytes) -> bool:
    """Return True if `body` is a JSON object with a member "model"."""
    try:
        return "model" in _MEMBERS.decode(body)
    except (ValueError, RecursionError):
        return False


def with_model(body: bytes, name: str) -> bytes:
    """Return `body` with `name` as its "model". All other members keep their bytes.

    A body that is not a JSON object is returned unchanged.
    """
    model = msgspec.Raw(msgspec.json.encode(name))
    try:
        if _MODEL.decode(body).model == model:
            return body
        return msgspec.json.encode(_MEMBERS.decode(body) | {"model": model})
    except (ValueError, RecursionError):
        return body


class _ModelMember(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"")


_MODEL = msgspec.json.Decoder(_ModelMember)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
