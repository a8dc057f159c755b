"""Envelopes: what a message on a topic holds, in and out, and what of it could be read when it is refused."""

from __future__ import annotations

import msgspec

from signoff.core.convert import convert_answer
from signoff.core.endpoints import COMPLETIONS
from signoff.core.job import Job, JobError
from signoff.errors import BadBody, BadRequest, SignoffError, kind_of

NOTHING = b"null"


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. `metadata` and `body` are JSON as they came; `flaw` says why it cannot be asked."""

    path: str = COMPLETIONS
    metadata: bytes = NOTHING
    body: bytes = NOTHING
    model: str | None = None
    error: SignoffError | None = None


class _Outer(msgspec.Struct):
    path: msgspec.Raw = msgspec.Raw(b'""')
    metadata: msgspec.Raw = msgspec.Raw(NOTHING)
    body: msgspec.Raw = msgspec.Raw(b"")


class _Model(msgspec.Struct):
    model: str | None = None


def parse_envelope(message: bytes) -> Envelope:
    """The envelope that `message` is; one with a flaw, and with its metadata if they could be read, if it is none."""
    try:
        message.decode()
        outer = msgspec.json.decode(message, type=_Outer)
        msgspec.json.decode(outer.metadata)
    except (ValueError, RecursionError) as error:
        return Envelope(error=BadBody(f'The message is no {{"path", "metadata", "body"}} in JSON: {error}'))
    metadata, path = bytes(outer.metadata), COMPLETIONS
    try:
        path = _normal(msgspec.json.decode(outer.path, type=str))
        if not bytes(outer.body):
            raise BadRequest("The message has no body.")  # noqa: TRY301 -- one place says what is kept of it
        body = bytes(outer.body)
        model = msgspec.json.decode(body, type=_Model).model
    except BadRequest as error:
        return Envelope(path=path, metadata=metadata, error=error)
    except (ValueError, RecursionError) as error:
        return Envelope(path=path, metadata=metadata, error=BadRequest(f"The message cannot be asked: {error}"))
    return Envelope(path=path, metadata=metadata, body=body, model=model)


def reply_for(job: Job) -> bytes:
    """The answer to the message that `job` came from: what was signed off, or why there is nothing."""
    if job.status == "success":
        told = {"status_code": 200, "metadata": msgspec.Raw(job.metadata), "body": _answer(job)}
    else:
        error = job.error or JobError(code="internal_error", message="The job ended without an answer.")
        told = {"status_code": error.status, "metadata": msgspec.Raw(job.metadata), "body": error_body(error)}
    return msgspec.json.encode(told)


def error_body(error: JobError) -> dict[str, dict[str, str | None]]:
    """`{"error": {"message", "type", "param", "code"}}`."""
    told = {"message": error.message, "type": kind_of(error.code, error.status), "param": None, "code": error.code}
    return {"error": told}


def _answer(job: Job) -> msgspec.Raw:
    return msgspec.Raw(NOTHING if job.response is None else convert_answer(job.path, job.response, job.target))


def _normal(path: str) -> str:
    """The path as the HTTP API has it: none is that of completions, and a slash more or less says nothing."""
    path = "/" + path.strip("/")
    return COMPLETIONS if path == "/" else path.removeprefix("/openai")
