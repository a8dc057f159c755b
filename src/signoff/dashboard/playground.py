"""The playground: ask any model, prompt or pipeline, two side by side. Each request is an ordinary job of the caller.

Without JavaScript, the form queues the jobs and redirects to an address that shows their answers, so a reload asks no
model again. The page never waits for an answer: it has a link to look again, and does so by itself with JavaScript.
`static/playground.js` streams the answers from `/v1/chat/completions` instead.
"""

from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import FromQuery
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.api_paths import CHAT, MESSAGES, RESPONSES
from signoff.core.ask import Ask, as_chat
from signoff.core.dialects import messages_to_chat, responses_to_chat
from signoff.core.job import Job
from signoff.core.json_position import find_syntax_error
from signoff.dashboard.content import answer_of_job
from signoff.dashboard.jobs import state_of
from signoff.dashboard.shell import PLAYGROUND, page, redirect, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import parse_form
from signoff.errors import BadRequest, SignoffError
from signoff.work.inference.resolve import list_targets
from signoff.work.jobs.query import get_job
from signoff.work.services import Services
from signoff.work.submit import submit

SIDES = ("left", "right")
# Members of a request that the form has fields for, beside its messages.
_NUMBERS = ("temperature", "max_tokens")
# Members that the playground sets itself.
_OWN = frozenset({"model", "stream", "stream_options"})


class PlaygroundForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the form."""

    left: str = ""
    """Model, prompt or pipeline to ask."""
    right: str = ""
    """Another one to ask the same; empty for none."""
    system: str = ""
    """System message; empty for none."""
    message: str = ""
    """Message of the user."""
    temperature: str = ""
    """Sampling temperature; empty for that of the model."""
    max_tokens: str = ""
    """Largest number of tokens of the answer; empty for that of the model."""
    body: str = ""
    """JSON of a whole request, which replaces the messages and the numbers; empty for none."""


@get("/dashboard/playground", include_in_schema=False, media_type=MediaType.HTML)
async def show_playground(  # noqa: PLR0913 -- one parameter for each part of the address
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    *,
    job: FromQuery[str] = "",
    left: FromQuery[str] = "",
    right: FromQuery[str] = "",
    target: FromQuery[str] = "",
) -> Template:
    """Show the form; `job` fills it with the request of a job, and `left` and `right` are jobs whose answers follow."""
    answers = [await get_job(services, caller, each) for each in (left, right) if each]
    source = answers[0] if answers else await get_job(services, caller, job) if job else None
    form = PlaygroundForm(left=target) if source is None else _form_of(source)
    if len(answers) > 1:
        form = msgspec.structs.replace(form, right=_target_of(answers[1]))
    return await _playground_page(request, services, caller, form, answers=answers)


@post("/dashboard/playground", include_in_schema=False, status_code=303, media_type=MediaType.HTML)
async def post_playground(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Template | Response[str]:
    """Ask one or two targets by jobs of the queue, and redirect to their answers."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), PlaygroundForm, "request")
    try:
        body = _body_of(form)
        jobs = dict[str, str]()
        for side in SIDES:
            if name := getattr(form, side).strip():
                encoded = msgspec.json.encode({"model": name} | body)
                ask = Ask(door="pages", caller=caller, path=CHAT, body=encoded, target=name)
                jobs[side] = (await submit(services, ask)).id
    except SignoffError as error:
        return await _playground_page(request, services, caller, form, error=error)
    return redirect(f"{PLAYGROUND.path}?{urlencode(jobs)}#answers")


async def _playground_page(
    request: AnyRequest,
    services: Services,
    caller: Caller,
    form: PlaygroundForm,
    *,
    answers: list[Job] | None = None,
    error: SignoffError | None = None,
) -> Template:
    shown = page(
        request,
        services,
        caller,
        "playground.html",
        PLAYGROUND.name,
        form=form,
        targets=[each.name for each in await list_targets(services, caller)],
        answers=dict(zip(SIDES, [_answer(each) for each in answers or []], strict=False)),
        sides=SIDES,
        query=urlencode({side: each.id for side, each in zip(SIDES, answers or [], strict=False)}),
        error=error and error.message,
    )
    return with_status(shown, error)


def _answer(job: Job) -> dict[str, Any]:
    return {"job": job, "state": state_of(job), "text": answer_of_job(job)}


def _target_of(job: Job) -> str:
    """Return the name to ask again: of a prompt, whose request is rendered already, that of its model."""
    return job.target if job.prompt is None else job.model


def _body_of(form: PlaygroundForm) -> dict[str, Any]:
    """Return the members of the request without the model. Raises BadRequest."""
    if not form.left.strip():
        raise BadRequest("`left` must be the name of a model, prompt or pipeline; choose one from the list.")
    if text := form.body.replace("\r\n", "\n").strip():
        if (place := find_syntax_error(text)) is not None:
            raise BadRequest(f"`body` is not JSON at line {place[0]}, column {place[1]}.")
        try:
            members = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.ValidationError as error:
            raise BadRequest(f"`body` must be a JSON object with the member `messages`: {error}.") from None
        return {name: value for name, value in members.items() if name not in _OWN}
    if not form.message.strip():
        raise BadRequest("`message` must not be empty; write what you want to ask.")
    system = [{"role": "system", "content": form.system}] if form.system.strip() else []
    body: dict[str, Any] = {"messages": [*system, {"role": "user", "content": form.message.replace("\r\n", "\n")}]}
    return body | {name: _number(name, text) for name in _NUMBERS if (text := getattr(form, name).strip())}


def _number(name: str, text: str) -> float | int:
    try:
        return msgspec.convert(text, int if name == "max_tokens" else float, strict=False)
    except msgspec.ValidationError:
        raise BadRequest(f"`{name}` must be a number, or empty for that of the model (got {text!r}).") from None


def _form_of(job: Job) -> PlaygroundForm:
    """Return the form with the request of a job: in its fields if they can hold it, else as JSON."""
    translate = {MESSAGES: messages_to_chat.to_chat, RESPONSES: responses_to_chat.to_chat}.get(job.path)
    try:
        chat = as_chat(job.body) if translate is None else translate(job.body, job.model)
        members = msgspec.json.decode(chat, type=dict[str, Any])
    except (SignoffError, ValueError, RecursionError):
        return PlaygroundForm(left=_target_of(job), body=job.body.decode(errors="replace"))
    rest = {name: value for name, value in members.items() if name not in _OWN}
    match rest.pop("messages", None):
        case [{"role": "user", "content": str() as message}]:
            system = ""
        case [{"role": "system", "content": str() as system}, {"role": "user", "content": str() as message}]:
            pass
        case _:
            system, message = "", None
    if message is None or not rest.keys() <= set(_NUMBERS):
        text = msgspec.json.format(msgspec.json.encode({n: v for n, v in members.items() if n not in _OWN}), indent=2)
        return PlaygroundForm(left=_target_of(job), body=text.decode())
    numbers = {name: str(value) for name, value in rest.items() if value is not None}
    return PlaygroundForm(left=_target_of(job), system=system, message=message, **numbers)


router = Router("/", route_handlers=[show_playground, post_playground])
