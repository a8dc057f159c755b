"""The model API of the AI backend: `/{get|post}/{operation}?id=MODEL` calls a model, adds one, or reads its log."""

import re
import shlex
from typing import Any
from urllib.parse import unquote_plus

from signoff.core.access import Caller
from signoff.core.api_paths import PREDICT
from signoff.core.ask import Ask
from signoff.core.decode import check_required
from signoff.core.model import Model, is_name
from signoff.core.wire import format_time
from signoff.doors.callers import caller_of, takes_commands
from signoff.doors.errors import raw_error_headers
from signoff.doors.http import (
    AsgiDoor,
    ClientWatch,
    Receive,
    Scope,
    Send,
    cache_control_of,
    header,
    is_retry,
    read_body,
    send_json,
    wait_seconds_of,
)
from signoff.doors.openai.responses import send_body
from signoff.errors import BadRequest, MethodNotAllowed, ModelNotFound, NotFound, SignoffError, Unauthorized
from signoff.work.admin.model_logs import clear_model_log, read_model_log
from signoff.work.admin.models import add_model
from signoff.work.call import begin_call, whole_answer
from signoff.work.perform import asks_for_a_stream

PREFIXES = ("/get/", "/post/", "/GET/", "/POST/", "/Get/", "/Post/")
# A `?` before one of these names counts as an `&`. A second field of the same name is a part of the URL in `dest`.
FIELD = re.compile(r"(?:^|[?&])(id|type|destination|dest)=", re.IGNORECASE)
QUOTES = {'"': '"', "'": "'", "“": "”", "„": "“"}
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class PredictDoor(AsgiDoor):
    """The door at `/get/` and `/post/`, with either method."""

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = await caller_of(self._services, self._door_settings, scope, sessions=False)
        operation = scope["path"].split("/", 2)[2].rstrip("/").lower()
        if scope["method"] not in {"GET", "POST"}:
            raise MethodNotAllowed.at(scope["path"], scope["method"], "GET, POST")
        fields = fields_of(scope["query_string"].decode("latin-1"))
        name = fields.get("id", "")
        if not is_name(name):
            raise BadRequest(f"Not an id: {name}")
        try:
            match operation:
                case "predict":
                    await self._predict(scope, receive, send, caller, name)
                case "getlogs":
                    lines, own = await read_model_log(self._services, caller, name)
                    await send_json(send, [*map(_log_entry_json, lines), *own])
                case "cleanlogs":
                    _check_token(scope)
                    await clear_model_log(self._services, caller, name)
                    await send_json(send, {"status": "success"})
                case "addmodel":
                    _check_token(scope)
                    may_set_command = takes_commands(self._door_settings, scope)
                    await add_model(self._services, caller, model_of(fields), may_set_command=may_set_command)
                    await send_json(send, {"status": "success", "id": name})
                case _:
                    raise NotFound(f"Unknown operation {operation!r}; use predict, getlogs, cleanlogs or addmodel.")
        except ModelNotFound as error:
            error.message = f"id is not registered: {name}"
            raise

    async def _predict(self, scope: Scope, receive: Receive, send: Send, caller: Caller, name: str) -> None:
        body = await read_body(scope, receive, self._door_settings.max_body_bytes)
        if not body and (scope["method"] == "GET" or scope["path"].lower().startswith("/get/")):
            body = b"null"  # a GET request has no body
        ask = Ask(
            door="predict",
            caller=caller,
            headers=scope["headers"],
            path=PREDICT,
            body=body,
            target=name,
            stream=asks_for_a_stream(body),
            lane="now",
            idempotency_key=header(scope, b"idempotency-key"),
            wait_seconds=wait_seconds_of(scope),
            is_retry=is_retry(scope),
            cache_control=cache_control_of(scope),
        )
        with ClientWatch(self._services, scope, receive):
            call = await begin_call(self._services, ask)
            await send_body(call, await whole_answer(self._services, call), send)

    async def _send_error(self, scope: Scope, send: Send, error: SignoffError) -> None:
        body = {"content": error.message} | ({} if error.job_id is None else {"job_id": error.job_id})
        headers = [*raw_error_headers(error), (b"x-signoff-code", error.code.encode())]
        await send_json(send, body, headers, status=error.status)


def fields_of(query: str) -> dict[str, str]:
    """Return `id`, `type` and `dest` of a query, with whichever quotes, encodings and separators the caller used.

    >>> fields_of('id=m?type=httpmodel?dest="127.0.0.1:8888"')
    {'id': 'm', 'type': 'httpmodel', 'dest': '127.0.0.1:8888'}
    """
    fields = _split(query)
    if "type" not in fields:  # the whole query may be encoded as one value
        fields = _split(unquote_plus(query)) | {key: value for key, value in fields.items() if key != "id"}
    return {key: _unquoted(unquote_plus(value)) for key, value in fields.items()}


def _split(query: str) -> dict[str, str]:
    fields, key, start = dict[str, str](), "", 0
    for field in FIELD.finditer(query):
        name = field[1].lower().removesuffix("ination")
        if name in fields or name == key:
            continue
        if key:
            fields[key] = query[start : field.start()]
        key, start = name, field.end()
    if key:
        fields[key] = query[start:]
    for name in fields.keys() & {"id", "type"}:
        fields[name] = re.split("[?&]", fields[name], maxsplit=1)[0]
    return fields


def _unquoted(text: str) -> str:
    """Return `text` without the quotes around it, if they are one pair around all of it."""
    text = text.strip()
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        return text[1:-1].strip()
    return text


def model_of(fields: dict[str, str]) -> Model:
    """Return the model that the fields of `addmodel` describe. Raises MissingParameter, BadRequest."""
    kind, destination = fields.get("type", "").lower().removesuffix("model"), fields.get("dest", "")
    check_required({name for name, value in fields.items() if value}, "type", "dest")
    if kind not in {"http", "subprocess"}:
        raise BadRequest(f"`type` must be httpmodel or subprocessmodel (got {fields.get('type', '')!r}).")
    if kind == "http":
        url = destination if SCHEME.match(destination) else f"http://{destination}"
        return Model(name=fields["id"], kind="http", url=url)
    try:
        return Model(name=fields["id"], kind="subprocess", command=tuple(shlex.split(destination)))
    except ValueError as error:
        raise BadRequest(f"`dest` is not a valid command line: {error}.") from None


def _check_token(scope: Scope) -> None:
    """Raise Unauthorized without a token: anonymous callers change nothing here, whatever role they have."""
    if header(scope, b"authorization") is None:
        raise Unauthorized


def _log_entry_json(entry: Any) -> dict[str, str]:
    return {"time": format_time(entry.at), "level": entry.level, "text": entry.text}
