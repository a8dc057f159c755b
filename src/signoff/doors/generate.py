"""The API of applications for a queue on RabbitMQ and Redis: `/generate`, `/chat_completion`, `/check_status`."""

from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import HttpMethod, Response, Router, post, route
from litestar.params import FromQuery, QueryParameter

from signoff.core.ask import Ask
from signoff.core.result import result_of
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, InjectedSettings
from signoff.doors.http import INTS, MAX_WAIT_SECONDS, Reply, cache_control_of, parse_json, wait_seconds_of
from signoff.doors.queue import QueueRequest, answer_in_litestar
from signoff.errors import MissingParameter, NotFound
from signoff.work.jobs.query import get_by_client_id, require_success, wait_for_end
from signoff.work.submit import submit

PATHS = {"/generate", "/chat_completion", "/check_status"}
Wait = Annotated[float | None, QueryParameter(ge=0, le=MAX_WAIT_SECONDS)]


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of the generation."""

    temperature: float = 0.2
    """Sampling temperature."""
    tokens_limit: Annotated[int, msgspec.Meta(gt=0, lt=INTS)] = 8096
    """Maximum number of tokens of the answer (`max_tokens`)."""
    stop_words: list[str] | None = None
    """Texts at which the model stops."""
    model: str | None = None
    """Name of the model; None for the default model."""


class TextRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /generate`."""

    job_id: str | None = None
    """Id that the caller chooses for the job; None for none."""
    meta: Meta = Meta()
    """Parameters of the generation."""
    content: str
    """Text that is sent as one user message."""
    priority: int = 5
    """Priority from 0 to 9; 9 goes first."""


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /chat_completion`."""

    job_id: str | None = None
    """Id that the caller chooses for the job; None for none."""
    meta: Meta = Meta()
    """Parameters of the generation."""
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]
    """Messages, which are sent to the model unchanged."""
    priority: int = 5
    """Priority from 0 to 9; 9 goes first."""


async def accept_text(request: QueueRequest, wait: Wait = None, queue_name: str | None = None) -> Reply:
    """Commit a job for one text, and answer it."""
    payload = parse_json(request.body, TextRequest, "request")
    model = _model_of(request, payload.meta, queue_name)
    body = _body(payload.meta, [{"role": "user", "content": payload.content}], model)
    return await _accept(request, _ask(request, "generate", payload, body, model), wait)


async def accept_chat(request: QueueRequest, wait: Wait = None, queue_name: str | None = None) -> Reply:
    """Commit a job for a conversation, and answer it."""
    payload = parse_json(request.body, ChatRequest, "request")
    model = _model_of(request, payload.meta, queue_name)
    body = _body(payload.meta, payload.messages, model)
    return await _accept(request, _ask(request, "chat_completion", payload, body, model), wait)


@post("/generate", status_code=200, summary="Generate from one text, through the queue")
async def generate(
    request: AnyRequest,
    services: InjectedServices,
    door_settings: InjectedSettings,
    caller: InjectedCaller,
    wait: Wait = None,
    queue_name: FromQuery[str | None] = None,
) -> Response[dict[str, Any]]:
    """Return `{"content": text}` once the job has ended; 202 at once if the caller does not wait."""
    accept = partial(accept_text, wait=wait, queue_name=queue_name)
    return await answer_in_litestar(request, services, door_settings, caller, accept)


@post("/chat_completion", status_code=200, summary="Generate from a conversation, through the queue")
async def chat_completion(
    request: AnyRequest,
    services: InjectedServices,
    door_settings: InjectedSettings,
    caller: InjectedCaller,
    wait: Wait = None,
    queue_name: FromQuery[str | None] = None,
) -> Response[dict[str, Any]]:
    """Return `{"content": text}` once the job has ended; 202 at once if the caller does not wait."""
    accept = partial(accept_chat, wait=wait, queue_name=queue_name)
    return await answer_in_litestar(request, services, door_settings, caller, accept)


@route("/check_status", http_method=[HttpMethod.GET, HttpMethod.POST], status_code=200, summary="Get a job's status")
async def check_status(
    services: InjectedServices, caller: InjectedCaller, job_id: FromQuery[str] = ""
) -> dict[str, Any]:
    """Return `{"job_id", "job_status", "content", "error"}` of the newest job that the caller gave this id."""
    if not job_id:
        raise MissingParameter("job_id", "Set it to the id of a job.")
    return result_of(await get_by_client_id(services, caller, job_id))


async def _accept(request: QueueRequest, ask: Ask, wait: float | None) -> Reply:
    job = await submit(request.services, ask)
    # The caller waits as long as the query says, or else the header `Prefer`, or else the settings.
    seconds = wait_seconds_of(request.scope) if wait is None else wait
    if seconds == 0:
        body = {name: value for name, value in result_of(job).items() if name in {"job_id", "job_status"}}
        return Reply(body, 202, {"location": f"/api/jobs/{job.id}", "retry-after": "1"})
    ended = require_success(await wait_for_end(request.services, request.caller, job.id, seconds))
    headers = {"x-signoff-job": job.id, "x-signoff-cache": ended.cache or "bypass"}
    return Reply({"content": result_of(ended)["content"]}, headers=headers)


def _model_of(request: QueueRequest, meta: Meta, queue_name: str | None) -> str | None:
    """Return the model of the queue, else that of `meta`; None for the default model. Raises NotFound."""
    if queue_name is None:
        return meta.model
    queues = request.door_settings.queues
    if queue_name not in queues:
        raise NotFound(f"The queue {queue_name!r} does not exist; an admin can add it to the setting `queues`.")
    return queues[queue_name] or meta.model


def _body(meta: Meta, messages: list[Any], model: str | None) -> bytes:
    body: dict[str, Any] = {"messages": messages, "temperature": meta.temperature, "max_tokens": meta.tokens_limit}
    if meta.stop_words:
        body["stop"] = meta.stop_words
    return msgspec.json.encode(body if model is None else {"model": model} | body)


def _ask(request: QueueRequest, door: str, payload: TextRequest | ChatRequest, body: bytes, model: str | None) -> Ask:
    return Ask(
        door=door,
        caller=request.caller,
        headers=request.scope["headers"],
        body=body,
        target=model,
        client_id=payload.job_id,
        priority=payload.priority,
        cache_control=cache_control_of(request.scope),
    )


router = Router("/", route_handlers=[generate, chat_completion, check_status], tags=["queue"])
