"""Envelopes of messages on a topic: parsing requests, and building answers."""

import msgspec

from signoff.core.api_paths import COMPLETIONS, normalize_route
from signoff.core.decode import NULL, decode_json, without_mark
from signoff.core.dialects.edited_answer import in_form
from signoff.core.job import WITHOUT_ANSWER, Job, JobError
from signoff.errors import BadBody, BadRequest, MissingParameter, SignoffError, kind_of


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed message of a request topic."""

    path: str = COMPLETIONS
    """Route of the request in the form of `api_paths.format_route`."""
    metadata: bytes = NULL
    """JSON as it came; it is returned with the answer."""
    body: bytes = NULL
    """JSON as it came."""
    model: str | None = None
    """The member `model` of the body."""
    error: SignoffError | None = None
    """Error that the answer reports, for a message that is not a valid request."""


class _Outer(msgspec.Struct):
    path: msgspec.Raw = msgspec.Raw(NULL)
    metadata: msgspec.Raw = msgspec.Raw(NULL)
    body: msgspec.Raw = msgspec.Raw(NULL)


class _Model(msgspec.Struct):
    model: str | None = None


def parse_envelope(message: bytes) -> Envelope:
    """Parse a message; the envelope of an invalid one has an `error`, and the metadata if they could be read."""
    message = without_mark(message)
    try:
        message.decode()
        outer = decode_json(message, _Outer)
        msgspec.json.decode(outer.metadata)
    except (ValueError, RecursionError) as error:
        fault = BadRequest if isinstance(error, msgspec.ValidationError) else BadBody
        return Envelope(error=fault(f'The message must be a JSON object {{"path", "metadata", "body"}}: {error}'))
    metadata, path = bytes(outer.metadata), COMPLETIONS
    try:
        path = normalize_route(msgspec.json.decode(outer.path, type=str | None) or "")
        path = COMPLETIONS if path == "/" else path
        body = bytes(outer.body)
        if body == NULL:
            return Envelope(path=path, metadata=metadata, error=MissingParameter("body"))
        model = msgspec.json.decode(body, type=_Model).model
    except (ValueError, RecursionError) as error:
        return Envelope(path=path, metadata=metadata, error=BadRequest(f"The message is not a valid request: {error}"))
    return Envelope(path=path, metadata=metadata, body=body, model=model)


def answer_message(job: Job) -> bytes:
    """Return the answer to the message that `job` came from, as JSON: the signed-off answer or the error."""
    if job.status == "success":
        message = {"status_code": 200, "metadata": msgspec.Raw(job.metadata), "body": _answer(job)}
    else:
        error = job.error or WITHOUT_ANSWER
        message = {"status_code": error.status, "metadata": msgspec.Raw(job.metadata), "body": error_body(error)}
    return msgspec.json.encode(message)


def error_body(error: JobError) -> dict[str, dict[str, str | None]]:
    """Return the error in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""
    kind = kind_of(error.code, error.status)
    return {"error": {"message": error.message, "type": kind, "param": error.param or None, "code": error.code}}


def _answer(job: Job) -> msgspec.Raw:
    return msgspec.Raw(NULL if job.response is None else in_form(job, job.response))
