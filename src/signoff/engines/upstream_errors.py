"""Errors of a model, in any of the usual formats."""

import msgspec

MAX_ERROR_BYTES = 64 * 2**10
MAX_MESSAGE_CHARS = 2000


class _Error(msgspec.Struct):
    message: str | None = None
    code: int | str | None = None
    status: int | str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None
    detail: str | None = None
    message: str | None = None


def read_error(body: bytes) -> tuple[str, int | None]:
    """Return the message of an error body, in any of the usual formats or else as text, and the status in it."""
    try:
        body_error = msgspec.json.decode(body, type=_ErrorBody)
    except (ValueError, RecursionError):
        body_error = _ErrorBody()
    error = body_error.error if isinstance(body_error.error, _Error) else _Error(message=body_error.error)
    message = error.message or body_error.detail or body_error.message or body.decode(errors="replace").strip()
    status = next((code for code in (error.code, error.status) if isinstance(code, int) and 400 <= code < 600), None)
    return message[:MAX_MESSAGE_CHARS], status
