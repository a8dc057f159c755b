"""The door of the AI backend: `/{get|post}/{operation}?id=MODEL`, to ask any model, to add one, and to read its log."""

from __future__ import annotations

import re
import shlex
from typing import Any
from urllib.parse import unquote_plus

from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.endpoints import PREDICT
from signoff.core.model import Model, is_name
from signoff.core.wire import format_time
from signoff.doors.http import (
    DoorSettings,
    Receive,
    Scope,
    Send,
    cache_control_of,
    caller_of,
    error_headers,
    header,
    in_dialect,
    leaving,
    not_allowed,
    read_body,
    send_json,
    takes_commands,
    wait_seconds_of,
)
from signoff.doors.openai.responses import send_body, whole_answer
from signoff.errors import BadRequest, ModelNotFound, NotFound, SignoffError, Unauthorized
from signoff.work.admin.models import add_model, clear_model_log, read_model_log
from signoff.work.call import begin_call
from signoff.work.perform import asks_for_a_stream
from signoff.work.services import Services

PREFIXES = ("/get/", "/post/", "/GET/", "/POST/", "/Get/", "/Post/")
# A `?` stands where an `&` was meant when a name of ours follows; the second one of a name belongs to an address.
FIELD = re.compile(r"(?:^|[?&])(id|type|destination|dest)=", re.IGNORECASE)
QUOTES = {'"': '"', "'": "'", "“": "”", "„": "“"}
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class PredictDoor:
    """Answers under `/get/` and `/post/`, with either method."""

    def __init__(self, services: Services, door_settings: DoorSettings) -> None:
        self._services = services
        self._door_settings = door_settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await in_dialect(self._route, scope, receive, send, send_error)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = scope["path"].split("/", 2)[2].rstrip("/").lower()
        if scope["method"] not in {"GET", "POST"}:
            raise not_allowed(scope["method"])
        caller = await caller_of(self._services, self._door_settings, scope, sessions=False)
        told = fields_of(scope["query_string"].decode("latin-1"))
        name = told.get("id", "")
        if not is_name(name):
            raise BadRequest(f"Not an id: {name}")
        try:
            match operation:
                case "predict":
                    await self._predict(scope, receive, send, caller, name)
                case "getlogs":
                    await send_json(
                        send, [_as_entry(entry) for entry in await read_model_log(self._services, caller, name)]
                    )
                case "cleanlogs":
                    _check_token(scope)
                    await clear_model_log(self._services, caller, name)
                    await send_json(send, {"status": "success"})
                case "addmodel":
                    _check_token(scope)
                    await add_model(
                        self._services, caller, model_of(told), commands=takes_commands(self._door_settings, scope)
                    )
                    await send_json(send, {"status": "success", "id": name})
                case _:
                    raise NotFound(f"Not an operation: {operation}")
        except ModelNotFound as error:
            error.message = f"id is not registered: {name}"
            raise

    async def _predict(self, scope: Scope, receive: Receive, send: Send, caller: Caller, name: str) -> None:
        body = await read_body(scope, receive, self._door_settings.max_body_bytes)
        if not body and (scope["method"] == "GET" or scope["path"].lower().startswith("/get/")):
            body = b"null"  # what is got needs no content
        ask = Ask(
            door="predict",
            caller=caller,
            path=PREDICT,
            body=body,
            target=name,
            stream=asks_for_a_stream(body),
            lane="now",
            idempotency_key=header(scope, b"idempotency-key"),
            wait_seconds=wait_seconds_of(scope),
            cache_control=cache_control_of(scope),
        )
        async with leaving(self._services, receive):
            call = await begin_call(self._services, ask)
            await send_body(call, await whole_answer(self._services, call), send)


def fields_of(query: str) -> dict[str, str]:
    """`id`, `type` and `dest` of a query, in which quotes, encodings and separators are whatever the caller made them.

    >>> fields_of('id=m?type=httpmodel?dest="127.0.0.1:8888"')
    {'id': 'm', 'type': 'httpmodel', 'dest': '127.0.0.1:8888'}
    """
    told = _split(query)
    if "type" not in told:  # the whole of it was encoded as one value
        told = _split(unquote_plus(query)) | {key: value for key, value in told.items() if key != "id"}
    return {key: _unquoted(unquote_plus(value)) for key, value in told.items()}


def _split(query: str) -> dict[str, str]:
    told, key, start = dict[str, str](), "", 0
    for field in FIELD.finditer(query):
        name = field[1].lower().removesuffix("ination")
        if name in told or name == key:
            continue
        if key:
            told[key] = query[start : field.start()]
        key, start = name, field.end()
    if key:
        told[key] = query[start:]
    for short in told.keys() & {"id", "type"}:
        told[short] = re.split("[?&]", told[short], maxsplit=1)[0]
    return told


def _unquoted(text: str) -> str:
    """Without the quotes around it, if they are a pair around all of it."""
    text = text.strip()
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        return text[1:-1].strip()
    return text


def model_of(told: dict[str, str]) -> Model:
    """The model that `addmodel` describes. Raises BadRequest."""
    kind, where = told.get("type", "").lower().removesuffix("model"), told.get("dest", "")
    if kind not in {"http", "subprocess"}:
        raise BadRequest(f"Not a type: {told.get('type', '')}; there are httpmodel and subprocessmodel.")
    if not where:
        raise BadRequest("Where is it? dest= is an address or a command line.")
    if kind == "http":
        return Model(name=told["id"], kind="http", url=where if SCHEME.match(where) else f"http://{where}")
    try:
        return Model(name=told["id"], kind="subprocess", command=tuple(shlex.split(where)))
    except ValueError as error:
        raise BadRequest(f"Not a command line: {error}.") from None


def _check_token(scope: Scope) -> None:
    """What changes something needs a token of its own, whatever callers without one may do."""
    if header(scope, b"authorization") is None:
        raise Unauthorized


def _as_entry(entry: Any) -> dict[str, str]:
    return {"time": format_time(entry.at), "level": entry.level, "text": entry.text}


async def send_error(send: Send, error: SignoffError) -> None:
    """An error in this door's dialect; its code is in a header."""
    told = {"content": error.message} | ({} if error.job_id is None else {"job_id": error.job_id})
    headers = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    await send_json(send, told, [*headers, (b"x-signoff-code", error.code.encode())], status=error.status)
