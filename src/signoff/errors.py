"""Every error a caller can meet: its HTTP status, its code, and whether asking again can help.

    SignoffError
    ├── BadRequest 400
    │   └── BadBody 400, TooLarge 413, KeyReused 422, AddressRefused 400
    ├── Unauthorized 401, Forbidden 403
    ├── NotFound 404
    │   └── JobNotFound, ModelNotFound
    ├── Conflict 409
    │   └── Stale, IdTaken
    ├── Overloaded 503, SchemaOutdated 500
    ├── ModelFailed 502
    │   ├── ModelAnswered (the upstream's own status)
    │   ├── ModelUnreachable, ModelCut, ModelCrashed, ModelGarbled
    │   └── ModelTimedOut 504
    ├── Undelivered 502
    ├── JobFailed (a job that ended in `fail`, told to the caller who waited)
    └── ReviewPending 504, JobPending 504

Only doors turn an error into bytes.
"""

from __future__ import annotations

from typing import ClassVar


class SignoffError(Exception):
    """The root. `message` is for the caller; `code` is stable and documented."""

    status: int = 500
    code: str = "internal_error"
    retryable: bool = False
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


class Overloaded(SignoffError):
    """The server has too much to do; try again shortly."""

    status, code = 503, "overloaded"
    retryable = True


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
