"""Every error a caller can meet: its HTTP status, its code, and whether asking again can help.

    SignoffError
    ├── BadRequest 400
    │   ├── BadBody 400, TooLarge 413, KeyReused 422, AddressRefused 400
    │   └── BadPipeline 400
    ├── Unauthorized 401, Forbidden 403
    ├── NotFound 404
    │   └── JobNotFound, ModelNotFound, ComposedNotFound
    ├── Conflict 409
    │   └── Stale, IdTaken, NameTaken
    ├── Overloaded 503, SchemaOutdated 500
    ├── LimitReached 429
    │   └── BudgetSpent
    ├── ModelFailed 502
    │   ├── ModelAnswered (the upstream's own status)
    │   ├── ModelUnreachable, ModelCut, ModelCrashed, ModelGarbled
    │   ├── ModelBusy 429, ModelDown 503
    │   └── ModelTimedOut 504
    ├── FunctionFailed 422
    │   └── FunctionTimedOut 504
    ├── StepFailed (a run's, with the status and the code of what failed in it)
    ├── Undelivered 502
    ├── JobFailed (a job that ended in `fail`, told to the caller who waited)
    └── ReviewPending 504, JobPending 504

Only doors turn an error into bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar


class SignoffError(Exception):
    """The root. `message` is for the caller; `code` is stable and documented."""

    status: int = 500
    code: str = "internal_error"
    retryable: bool = False
    retry_after_seconds: float | None = None
    kind: ClassVar[str] = "server_error"

    def __init__(self, message: str = "", *, job_id: str | None = None) -> None:
        super().__init__(message or type(self).__doc__ or "")
        self.message = str(self.args[0])
        self.job_id = job_id


class BadRequest(SignoffError):
    """The request cannot be understood."""

    status, code = 400, "bad_request"
    kind = "invalid_request_error"


class BadBody(BadRequest):
    """The body is not valid JSON."""

    code = "invalid_json"


class TooLarge(BadRequest):
    """The body is larger than this server takes."""

    status, code = 413, "body_too_large"


class KeyReused(BadRequest):
    """This idempotency key was used with another body."""

    status, code = 422, "idempotency_key_reused"


class AddressRefused(BadRequest):
    """This address cannot be used, or may not be reached from here."""

    code = "address_refused"


class BadPipeline(BadRequest):
    """The pipeline cannot be read, or cannot run. `at` is the character where, from 0."""

    code = "bad_pipeline"

    def __init__(self, message: str = "", *, at: int = 0, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.at = at
        self.line = line
        self.column = column

    @classmethod
    def at_position(cls, what: str, text: str, at: int) -> BadPipeline:
        """`what` is wrong at that character of `text`; lines and columns are counted from 1."""
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        message = f"{what[0].upper()}{what[1:]} (line {line}, column {column})."
        return cls(message, at=at, line=line, column=column)


class Unauthorized(SignoffError):
    """A token is needed: Authorization: Bearer <token>."""

    status, code = 401, "unauthorized"
    kind = "invalid_request_error"


class Forbidden(SignoffError):
    """This caller may not do that."""

    status, code = 403, "forbidden"
    kind = "invalid_request_error"


class NotFound(SignoffError):
    """There is nothing here."""

    status, code = 404, "not_found"
    kind = "invalid_request_error"


class JobNotFound(NotFound):
    """There is no such job."""

    code = "job_not_found"


class ModelNotFound(NotFound):
    """There is no such model."""

    code = "model_not_found"


class LibraryItemNotFound(NotFound):
    """There is no such prompt, pipeline or function."""

    code = "composed_not_found"


class Conflict(SignoffError):
    """The thing has changed meanwhile."""

    status, code = 409, "conflict"
    kind = "invalid_request_error"


class Stale(Conflict):
    """The job is not (or no longer) in a state that allows this."""

    code = "stale"


class IdTaken(Conflict):
    """This job id was used with another body."""

    code = "job_id_taken"


class NameTaken(Conflict):
    """A prompt, a pipeline, a function or a model is called that already."""

    code = "name_taken"


class Overloaded(SignoffError):
    """The server has too much to do; try again shortly."""

    status, code = 503, "overloaded"
    retryable = True


class LimitReached(SignoffError):
    """There is no room under a limit of this caller's; `Retry-After` says when there is.

    `retry_after_seconds` is None where waiting does not help. `gauges` say how many requests and tokens there may be in
    a minute, how many are left, and the seconds until all are free again.
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
        self.retryable = retry_after_seconds is not None


class BudgetSpent(LimitReached):
    """What this caller may use in a day or a month is used up; a client's own retry does not help."""

    code = "insufficient_quota"
    kind = "insufficient_quota"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None,
        gauges: Mapping[str, tuple[int, int, float]] | None = None,
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds, gauges=gauges)
        self.retryable = False


class ModelFailed(SignoffError):
    """The model could not answer."""

    status, code = 502, "model_failed"
    kind = "upstream_error"


class ModelAnswered(ModelFailed):
    """The model answered with an error of its own; its status and body are kept."""

    code = "model_error"

    def __init__(
        self, status: int, message: str, *, body: bytes = b"", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after_seconds = retry_after_seconds
        self.retryable = status in {408, 409, 429} or status >= 500


class ModelUnreachable(ModelFailed):
    """The model cannot be reached."""

    code = "model_unreachable"
    retryable = True


class ModelCut(ModelFailed):
    """The model stopped in the middle of its answer."""

    code = "model_cut"
    retryable = True


class ModelCrashed(ModelFailed):
    """The model's process ended while it worked. Who waits is told at once: it may have been their request."""

    code = "model_crashed"
    retryable = True


class ModelGarbled(ModelFailed):
    """The model answered with something that cannot be read."""

    code = "model_garbled"


class ModelTimedOut(ModelFailed):
    """The model took too long."""

    status, code = 504, "model_timed_out"
    retryable = True


class ModelBusy(ModelFailed):
    """Too many wait for the model already, or for too long."""

    status, code = 429, "model_busy"
    retryable = True


class ModelDown(ModelFailed):
    """No endpoint of the model answers; the first one is asked again after `Retry-After`."""

    status, code = 503, "model_down"
    retryable = True
    is_final = False
    """Whether the model's time is over before that."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class FunctionFailed(SignoffError):
    """The function of a pipeline did not give a result; the message names the call."""

    status, code = 422, "function_failed"


class FunctionTimedOut(FunctionFailed):
    """The function of a pipeline took too long."""

    status, code = 504, "function_timed_out"


class StepFailed(SignoffError):
    """A call of the pipeline has failed, and with it the run; the message names the call."""

    status, code = 502, "step_failed"


class Undelivered(SignoffError):
    """A message did not reach its receiver."""

    status, code = 502, "undelivered"
    retryable = True


class JobFailed(SignoffError):
    """The job ended without an answer: rejected, cancelled, interrupted, or its model failed."""

    code = "job_failed"

    def __init__(self, message: str, *, status: int, code: str, job_id: str) -> None:
        super().__init__(message, job_id=job_id)
        self.status = status
        self.code = code
        self.retryable = status in {408, 429} or status >= 500


class ReviewPending(SignoffError):
    """The answer still waits for a person; the job goes on."""

    status, code = 504, "review_pending"


class JobPending(SignoffError):
    """The job has not ended yet; it goes on."""

    status, code = 504, "job_pending"


class SchemaOutdated(SignoffError):
    """The database's schema is not this version's."""

    code = "schema_outdated"


def kind_of(code: str, status: int) -> str:
    """What clients of OpenAI's call the type of an error that is known by its code and status alone."""
    known = next((kind for kind in _all(SignoffError) if kind.code == code), None)
    if known is None or known in {SignoffError, JobFailed}:
        return "invalid_request_error" if status < 500 else "server_error"
    return known.kind


def _all(kind: type[SignoffError]) -> Iterator[type[SignoffError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _all(below)
