"""Events of a model: which one ends its stream, and which one is an error."""

import msgspec

from signoff.core import sse
from signoff.engines.upstream_errors import MAX_ERROR_BYTES, read_error
from signoff.errors import ModelAnswered, ModelCut, ModelFailed, ModelGarbled


class _Event(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


# A stream of `/v1/responses` has no `[DONE]`.
_FINAL_TYPES = {b'"response.completed"', b'"response.incomplete"', b'"response.failed"'}


def is_last_event(data: bytes, *, json_only: bool) -> bool:
    """Return True if an event ends its stream.

    Raises ModelAnswered for an error event, and, if `json_only`, ModelGarbled for one that is not a JSON object.
    """
    if not data or data.startswith(b"[DONE]"):
        return bool(data)
    try:
        data.decode()
        event = msgspec.json.decode(data, type=_Event)
    except (ValueError, RecursionError) as error:
        if not json_only:
            return False
        raise ModelGarbled("The model sent an event that is not a JSON object.") from error
    kind = bytes(event.type)
    if bytes(event.error) != b"null" or kind == b'"error"':
        message, status = read_error(data)
        raise ModelAnswered(status or ModelFailed.status, message, body=data[:MAX_ERROR_BYTES])
    return json_only and kind in _FINAL_TYPES


def final_part(raw: bytes, *, json_only: bool) -> bytes:
    """Return the final event of a body that ends without a blank line. Raises ModelCut if it must be JSON."""
    if sse.data_of(raw).startswith(b"[DONE]"):
        return sse.DONE
    if json_only:
        raise ModelCut
    return raw
