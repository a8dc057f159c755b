"""Exceptions that callers see: each has an HTTP status, a stable code, and a flag that says whether a retry can help.

    SignoffError
    ├── BadRequest 400
    │   ├── BadBody 400, MissingParameter 400, MethodNotAllowed 405, KeyReused 422, AddressRefused 400
    │   ├── SignInExpired 400, UnsupportedEncoding 415, HeadTooLarge 431, RequestTimedOut 408, MisdirectedRequest 421
    │   ├── RunTooLarge 413
    │   ├── TooLarge 413
    │   │   └── FilesTooLarge 413
    │   ├── InvalidType 400
    │   │   └── InvalidValue 400
    │   └── BadPipeline 400
    ├── Unauthorized 401
    │   └── TokenExpired
    ├── Forbidden 403
    │   └── AnswerRejected, PasswordsOff, SignInRefused
    ├── NotFound 404
    │   ├── JobNotFound, LibraryItemNotFound
    │   └── ModelNotFound
    │       └── NoDefaultModel
    ├── Conflict 409
    │   └── Stale, VersionConflict, ObjectHeld, IdTaken, NameTaken, PassLapsed
    ├── Overloaded 503, Interrupted 503, BlobMissing 500, SchemaOutdated 500, WrongKey 500
    ├── LimitReached 429
    │   └── BudgetSpent, BacklogFull
    ├── ModelFailed 502
    │   ├── ModelAnswered (the upstream's own status)
    │   │   └── ModelAccessDenied 401, 403
    │   ├── ModelUnreachable, ModelCut, ModelCrashed, ModelGarbled
    │   ├── ModelBusy 429, ModelDown 503
    │   └── ModelTimedOut 504
    ├── FunctionFailed 422
    │   └── FunctionTimedOut 504
    ├── StepFailed (with the status and the code of the step that failed)
    ├── Undelivered 502, ProviderFailed 502
    ├── JobFailed (with the status and the code of the failed job)
    └── ReviewPending 504, JobPending 504

Only doors turn an error into bytes. The first line of each docstring is the meaning of the code in `docs/errors.md`,
and the message of an error that is raised without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import ClassVar, Self


class SignoffError(Exception):
    """The server failed unexpectedly; its log has the details."""

    status: int = 500
    """HTTP status of the response."""
    code: str = "internal_error"
    """Stable identifier of the fault, the same at every door."""
    retryable: bool = False
    """True if the same request can succeed later."""
    retry_after_seconds: float | None = None
    """Seconds until a retry can succeed; None if unknown."""
    param: str | None = None
    """Parameter that is at fault; None if the error is not about one, or only its message names it."""
    kind: ClassVar[str] = "server_error"
    """Type of the error in the format of OpenAI's API."""

    def __init__(self, message: str = "", *, job_id: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])
        self.message = str(self.args[0])
        self.job_id = job_id

    def copy(self) -> Self:
        """Return an equal error without a traceback, so that callers who share it do not keep each other's frames."""
        equal = type(self).__new__(type(self), *self.args)
        equal.__dict__.update(self.__dict__)
        return equal


class BadRequest(SignoffError):
    """The request is malformed or has an invalid value; correct what the message names."""

    status, code = 400, "bad_request"
    kind = "invalid_request_error"


class BadBody(BadRequest):
    """The body is not valid JSON; send JSON (RFC 8259) in UTF-8."""

    code = "invalid_json"


class MissingParameter(BadRequest):
    """The request lacks a parameter that the endpoint requires; add the one that the message names."""

    code = "missing_required_parameter"

    def __init__(self, param: str, hint: str = "") -> None:
        super().__init__(f"Missing required parameter: {param!r}. {hint}".rstrip())  # as OpenAI's API says it
        self.param = param


class InvalidType(BadRequest):
    """A parameter of a file or a batch has the wrong type; correct the one that the message names."""

    code = "invalid_type"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class InvalidValue(InvalidType):
    """A parameter of a file or a batch has an invalid value; correct the one that the message names."""

    code = "invalid_value"


class MethodNotAllowed(BadRequest):
    """The path does not support this HTTP method; use a documented one."""

    status, code = 405, "method_not_allowed"
    allow: str = ""
    """Methods that the path supports, for the header `Allow` (RFC 9110, section 10.2.1)."""

    @classmethod
    def at(cls, path: str, method: str, allow: str) -> Self:
        """Return the error for a request with `method`."""
        error = cls(f"The path {path} does not support the method {method}; it supports {allow}.")
        error.allow = allow
        return error


class TooLarge(BadRequest):
    """The body is larger than the setting `max_body_bytes`, or the route, allows; send a smaller one."""

    status, code = 413, "body_too_large"


class FilesTooLarge(TooLarge):
    """The files of the caller would have more bytes than the setting `max_stored_bytes` allows; delete some of them."""

    code = "storage_full"


class SignInExpired(BadRequest):
    """The sign-in began too long ago or in another browser, or was used already; begin again on the sign-in page."""

    code = "sign_in_expired"


class UnsupportedEncoding(BadRequest):
    """The `Content-Encoding` of the body is not gzip, deflate, br, zstd or identity; use one of them, or none."""

    status, code = 415, "unsupported_encoding"


class HeadTooLarge(BadRequest):
    """The request line with the headers is larger than 64 KiB, or has more than 256 headers; send fewer."""

    status, code = 431, "head_too_large"


class RequestTimedOut(BadRequest):
    """The client sent its request too slowly; send it again over a faster connection."""

    status, code = 408, "request_timed_out"


class MisdirectedRequest(BadRequest):
    """The `Host` is not one at which callers without a token are served; use another one, or send a token."""

    status, code = 421, "misdirected_request"


class RunTooLarge(BadRequest):
    """The calls of a run have more bytes than the setting `max_run_bytes` allows; shorten its arguments."""

    status, code = 413, "run_too_large"


class KeyReused(BadRequest):
    """The `Idempotency-Key` was used with a different request; use a new key for each new request."""

    status, code = 422, "idempotency_key_reused"


class AddressRefused(BadRequest):
    """The URL is malformed or its host is not allowed; use an allowed host, or ask the operator to allow it."""

    code = "address_refused"


class BadPipeline(BadRequest):
    """The pipeline has an error; correct its text at the position that the message gives.

    `at` is the position of the faulty character, counted from 0; `line` and `column` are counted from 1.
    """

    code = "bad_pipeline"

    def __init__(self, message: str = "", *, at: int = 0, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.at = at
        self.line = line
        self.column = column

    @classmethod
    def at_position(cls, what: str, text: str, at: int) -> BadPipeline:
        """Return the error for the fault `what` at character `at` of `text`, counted from 0.

        `what` is a clause without a full stop. The message adds the line and the column, counted from 1.
        """
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        message = f"{what[0].upper()}{what[1:]} (line {line}, column {column})."
        return cls(message, at=at, line=line, column=column)


class Unauthorized(SignoffError):
    """The token or session is missing, invalid or revoked; send `Authorization: Bearer TOKEN`."""

    status, code = 401, "unauthorized"
    kind = "invalid_request_error"


class TokenExpired(Unauthorized):
    """The token or session has expired; create a new token, or sign in again."""

    code = "token_expired"


class Forbidden(SignoffError):
    """The caller's role does not allow this; use a token of a user who may do it."""

    status, code = 403, "forbidden"
    kind = "invalid_request_error"


class AnswerRejected(Forbidden):
    """A policy of the server, or a reviewer, rejected the answer; the message is the reason."""

    code = "rejected"


class PasswordsOff(Forbidden):
    """The setting `password_sign_in` turns passwords off; sign in another way, or ask an admin for a sign-in link."""

    code = "password_sign_in_off"


class SignInRefused(Forbidden):
    """The account at the OpenID Connect provider may not sign in here; the message says why."""

    code = "sign_in_refused"


class NotFound(SignoffError):
    """The path, or the object that the request names, does not exist; check the spelling and the id."""

    status, code = 404, "not_found"
    kind = "invalid_request_error"


def no_delivery(delivery_id: str) -> NotFound:
    """Return the error for a delivery that does not exist, or is not the caller's."""
    return NotFound(f"There is no delivery {delivery_id}; list those of a job with `GET /api/jobs/JOB_ID/deliveries`.")


class JobNotFound(NotFound):
    """No job has this id, or the caller may not see it; check the id and the token."""

    code = "job_not_found"


class ModelNotFound(NotFound):
    """No model has this name; list the names with `GET /v1/models`."""

    code = "model_not_found"


class NoDefaultModel(ModelNotFound):
    """No model is the default one: name one in `model`, or let an admin mark one (signoff model default NAME)."""

    code = "no_default_model"


class LibraryItemNotFound(NotFound):
    """No prompt, pipeline or function has this name, id, version or label; list them first."""

    code = "composed_not_found"


class Conflict(SignoffError):
    """The request conflicts with the current state of the object; read the object again before a retry."""

    status, code = 409, "conflict"
    kind = "invalid_request_error"


class Stale(Conflict):
    """The state of the job does not allow this, or it changed meanwhile; read the job again."""

    code = "stale"


class VersionConflict(Conflict):
    """The object was changed after it was read; compare your change with its present state before you save it."""

    code = "version_conflict"


class ObjectHeld(Conflict):
    """An answer that waits for a review came into an object that the request names; send the request again."""

    code = "object_held"
    retryable = True


class IdTaken(Conflict):
    """The `job_id` was used with a different request, or by another user; use a new id for each new request."""

    code = "job_id_taken"


def id_taken(client_id: str) -> IdTaken:
    """Return the error for a `job_id` under which another user's result is stored."""
    return IdTaken(f"`job_id` {client_id!r} is in use; send a new one, such as a random one.")


class PassLapsed(Conflict):
    """The pass of an answer under an error budget lapsed before it was used; the answer is held instead."""

    code = "pass_lapsed"


class NameTaken(Conflict):
    """The name is in use or reserved; choose a different one."""

    code = "name_taken"


def name_taken(name: str) -> NameTaken:
    """Return the error for a name in use. It does not tell by what, as that may be a private prompt of another user."""
    return NameTaken(f"`name` {name!r} is in use or reserved; choose a different one.")


class Overloaded(SignoffError):
    """The server or its database has too much to do; retry after the seconds in `Retry-After`."""

    status, code = 503, "overloaded"
    retryable = True


def write_timed_out() -> Overloaded:
    """Return the error for a write that the database did not commit in time."""
    return Overloaded("The database did not commit the write in time; try again later.")


class BlobMissing(SignoffError):
    """The contents of a file are missing from the blob store; restore them, or upload the file again."""

    code = "blob_missing"


class LimitReached(SignoffError):
    """A rate limit of the caller is reached; retry after the seconds in `Retry-After`, if it is set.

    `retry_after_seconds` is None if waiting does not help. `gauges` maps `requests` and `tokens` to the limit per
    minute, the amount left, and the seconds until the full amount is available again.
    """

    status, code = 429, "rate_limit_exceeded"
    kind = "rate_limit_error"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None,
        gauges: Mapping[str, tuple[int, int, float]] | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.gauges = gauges or {}
        self.retryable = retry_after_seconds is not None and not isinstance(self, BudgetSpent)


class BudgetSpent(LimitReached):
    """A daily or monthly limit of the caller is used up; wait for its end, or ask an admin to raise it."""

    code = kind = "insufficient_quota"


class BacklogFull(LimitReached):
    """Too many jobs of the caller, or too large ones, have not ended; wait for some to end, or cancel some."""

    code = "backlog_full"


class ModelFailed(SignoffError):
    """The model failed to answer for the reason in the message; correct what it names, or retry."""

    status, code = 502, "model_failed"
    kind = "upstream_error"


class ModelAnswered(ModelFailed):
    """The model returned an error, whose status and body are passed on; correct the request or retry."""

    code = "model_error"

    def __init__(
        self,
        status: int,
        message: str,
        *,
        body: bytes = b"",
        retry_after_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers or {}
        """The model's own headers about its limits, which are passed on to the caller."""
        self.codes = frozenset[str]()
        """Codes and types of the error in its body, in lower case."""
        self.retryable = is_transient(status)
        self.is_account_fault = status in {401, 402, 403}
        """True if the upstream's account is at fault, that is its key, its rights or its credit, not the request."""


class ModelAccessDenied(ModelAnswered):
    """The model denied access to this server, with status 401 or 403; an admin must correct the upstream key."""

    status, code = 401, "model_access_denied"


class ModelUnreachable(ModelFailed):
    """The server cannot connect to the model; retry, or check its address and that it runs."""

    code = "model_unreachable"
    retryable = True


class ModelCut(ModelFailed):
    """The model closed the connection in the middle of its answer; retry."""

    code = "model_cut"
    retryable = True


class ModelCrashed(ModelFailed):
    """The model's process ended while it worked; retry, unless this request caused the crash.

    A waiting caller gets this error at once, without another attempt, because the request may be the cause.
    """

    code = "model_crashed"
    retryable = True


class ModelGarbled(ModelFailed):
    """The model returned data that is malformed or too large; check that the model has the right kind."""

    code = "model_garbled"

    def __init__(self, message: str = "", *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class ModelTimedOut(ModelFailed):
    """The model took longer than a timeout allows; retry, or raise the timeouts of the model."""

    status, code = 504, "model_timed_out"
    retryable = True


class ModelBusy(ModelFailed):
    """Too many requests wait for the model, or this one waited too long; retry after `Retry-After` seconds."""

    status, code = 429, "model_busy"
    retryable = True


class ModelDown(ModelFailed):
    """No endpoint of the model is available; the first one is tried again after `Retry-After` seconds."""

    status, code = 503, "model_down"
    retryable = True
    is_final = False
    """True if the deadline of the request passes before an endpoint is tried again."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class FunctionFailed(SignoffError):
    """A function of a pipeline raised an error; correct the arguments of the call that the message names."""

    status, code = 422, "function_failed"


class FunctionTimedOut(FunctionFailed):
    """A function of a pipeline took longer than `function_seconds` allows; make it faster, or raise the setting."""

    status, code = 504, "function_timed_out"


class StepFailed(SignoffError):
    """A call of the pipeline failed, and with it the run; the message names the call and the reason."""

    status, code = 502, "step_failed"


class Undelivered(SignoffError):
    """The receiver did not accept a delivery; the server retries it by itself."""

    status, code = 502, "undelivered"
    retryable = True


class ProviderFailed(SignoffError):
    """The OpenID Connect provider cannot be reached, or its answer cannot be used; `signoff doctor` says more."""

    status, code = 502, "identity_provider_failed"
    retryable = True
    reason: str = ""
    """Fault, for operators; the message repeats it, and says what people who sign in can do."""


class JobFailed(SignoffError):
    """The job was rejected, cancelled or interrupted, or it failed; its own status and code replace these."""

    code = "job_failed"

    def __init__(self, message: str, *, status: int, code: str, job_id: str) -> None:
        super().__init__(message, job_id=job_id)
        self.status = status
        self.code = code
        self.retryable = is_retryable_end(status)


class ReviewPending(SignoffError):
    """The answer is still held for review, and the job goes on; ask for the job later."""

    status, code = 504, "review_pending"
    retry_after_seconds = 10.0


class JobPending(SignoffError):
    """The job has not ended yet, and goes on; ask for the job later."""

    status, code = 504, "job_pending"
    retry_after_seconds = 1.0


class Interrupted(SignoffError):
    """The server stopped before the answer came; send the request again."""

    status, code = 503, "interrupted"
    retryable = True


class SchemaOutdated(SignoffError):
    """The schema of the database does not fit this version: run `signoff migrate`, or install the newer version."""

    code = "schema_outdated"


class WrongKey(SignoffError):
    """The secrets of the database are encrypted with another key; copy the key file of the other hosts."""

    code = "wrong_key"


# Statuses that no retry can change: the server lacks a method, a version or an extension of HTTP, or needs a sign-in.
_UNSUPPORTED = {501, 505, 510, 511}


def is_transient(status: int) -> bool:
    """Return True if the same request may get another status later."""
    return status in {408, 409, 425, 429} or (status >= 500 and status not in _UNSUPPORTED)


def is_retryable_end(status: int) -> bool:
    """Return True if an equal request can succeed after a job that failed with `status`.

    A job fails with 409 if it was cancelled, or if it came into conflict with the request itself.
    """
    return status != HTTPStatus.CONFLICT and is_transient(status)


def kind_of(code: str, status: int) -> str:
    """Return the type, in the format of OpenAI's API, of an error of which only code and status are known."""
    error_class = next((error for error in _subclasses(SignoffError) if error.code == code), None)
    if error_class is None or error_class in {SignoffError, JobFailed}:
        return "invalid_request_error" if status < 500 else "server_error"
    return error_class.kind


def _subclasses(error: type[SignoffError]) -> Iterator[type[SignoffError]]:
    """Yield `error` and all classes below it."""
    yield error
    for subclass in error.__subclasses__():
        yield from _subclasses(subclass)
