"""The queue's door: `/generate`, `/chat_completion`, `/check_status`, as the job API on RabbitMQ and Redis had them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import HttpMethod, Request, Response, Router, post, route
from litestar.params import FromQuery, QueryParameter

from signoff.core.ask import Ask
from signoff.core.job import Job
from signoff.core.result import result_of
from signoff.doors.http import (
    INTS,
    MAX_WAIT_SECONDS,
    InjectedCaller,
    InjectedServices,
    cache_control_of,
    error_headers,
    scope_of,
    wait_seconds_of,
)
from signoff.errors import BadBody, BadRequest, SignoffError
from signoff.work.jobs.query import get_by_client_id, require_success, wait_for_end
from signoff.work.submit import submit

PATHS = {"/generate", "/chat_completion", "/check_status"}
Wait = Annotated[float | None, QueryParameter(ge=0, le=MAX_WAIT_SECONDS)]


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """How to generate. `model` is None for the default one."""

    temperature: float = 0.2
    tokens_limit: Annotated[int, msgspec.Meta(gt=0, lt=INTS)] = 8096
    stop_words: list[str] | None = None
    model: str | None = None


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, in one text."""

    job_id: str | None = None
    meta: Meta = Meta()
    content: str
    priority: int = 5


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, as messages, which go to the model as they are."""

    job_id: str | None = None
    meta: Meta = Meta()
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]
    priority: int = 5


@post("/generate", status_code=200, summary="Generate from one text, through the queue")
async def generate(
    request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller, wait: Wait = None
) -> Response[dict[str, Any]]:
    """`{"content": text}`, or a 202 at once where the caller does not wait."""
    asked = _decoded(await request.body(), Prompt)
    message = {"role": "user", "content": asked.content}
    job = await submit(services, _ask(request, caller, asked, [message]))
    return await _answered(services, caller, job, _patience(request, wait))


@post("/chat_completion", status_code=200, summary="Generate from a conversation, through the queue")
async def chat_completion(
    request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller, wait: Wait = None
) -> Response[dict[str, Any]]:
    """`{"content": text}`, or a 202 at once where the caller does not wait."""
    asked = _decoded(await request.body(), Conversation)
    job = await submit(services, _ask(request, caller, asked, asked.messages))
    return await _answered(services, caller, job, _patience(request, wait))


@route("/check_status", http_method=[HttpMethod.GET, HttpMethod.POST], status_code=200, summary="Look at such a job")
async def check_status(
    services: InjectedServices, caller: InjectedCaller, job_id: FromQuery[str] = ""
) -> dict[str, Any]:
    """`{"job_id", "job_status", "content", "error"}`."""
    if not job_id:
        raise BadRequest("Which job? /check_status?job_id=…")
    return result_of(await get_by_client_id(services, caller, job_id))


def failed(_: Request[Any, Any, Any], error: SignoffError) -> Response[dict[str, Any]]:
    """An error in this door's dialect."""
    body = {"detail": error.message, "code": error.code}
    told = body if error.job_id is None else body | {"job_id": error.job_id}
    return Response(told, status_code=error.status, headers=dict(error_headers(error)))


def _ask(
    request: Request[Any, Any, Any], caller: InjectedCaller, asked: Prompt | Conversation, messages: list[Any]
) -> Ask:
    meta = asked.meta
    body: dict[str, Any] = {"messages": messages, "temperature": meta.temperature, "max_tokens": meta.tokens_limit}
    if meta.stop_words:
        body["stop"] = meta.stop_words
    return Ask(
        door="generate",
        caller=caller,
        body=msgspec.json.encode(body if meta.model is None else {"model": meta.model} | body),
        target=meta.model,
        client_id=asked.job_id,
        priority=asked.priority,
        cache_control=cache_control_of(scope_of(request)),
    )


async def _answered(
    services: InjectedServices, caller: InjectedCaller, job: Job, seconds: float | None
) -> Response[dict[str, Any]]:
    if seconds == 0:
        told = {name: value for name, value in result_of(job).items() if name in {"job_id", "job_status"}}
        return Response(told, status_code=202, headers={"location": f"/api/jobs/{job.id}", "retry-after": "1"})
    done = require_success(await wait_for_end(services, caller, job.id, seconds))
    headers = {"x-signoff-job": job.id, "x-signoff-cache": done.cache or "bypass"}
    return Response({"content": result_of(done)["content"]}, headers=headers)


def _patience(request: Request[Any, Any, Any], wait: float | None) -> float | None:
    """Seconds that this caller waits for the answer, where they say."""
    return wait_seconds_of(scope_of(request)) if wait is None else wait


def _decoded(body: bytes, wanted: type[Prompt | Conversation]) -> Any:
    try:
        return msgspec.json.decode(body, type=wanted)
    except msgspec.ValidationError as error:
        raise BadRequest(f"This cannot be asked: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadBody(f"The body is not valid JSON: {error}") from None


router = Router("/", route_handlers=[generate, chat_completion, check_status], tags=["queue"])
