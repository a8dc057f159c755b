"""Events of a model's stream: detection of the last event and of errors, and addition of a missing last event."""

from signoff.core import sse
from signoff.core.dialects.assembly import decode_payloads
from signoff.core.dialects.stream_state import FINAL_TYPES, is_without_answer, missing_end, payload_type
from signoff.core.dialects.surrogates import (
    as_utf8,
    decode_with_surrogates,
)
from signoff.core.dialects.text_events import TextEvent, text_event
from signoff.engines.upstream_answers import (
    as_model_answered,
    described_event_error,
    find_error,
    is_description,
    own_error,
)
from signoff.errors import ModelAnswered, ModelCut, ModelGarbled

_FAILED = "response.failed"
_STARTS_OF_JSON = {b"{", b"["}
_STARTS_OF_NO_EVENT = _STARTS_OF_JSON | {b"<"}


def is_last_event(event: bytes, *, json_only: bool) -> bool:
    """Return True if an event ends its stream.

    Raises ModelAnswered for an error event, and, if `json_only`, ModelGarbled for one that is not a JSON object.
    """
    data = sse.data_of(event)
    if not data or data.startswith(b"[DONE]"):
        return bool(data)
    is_error = sse.name_of(event) == b"error"
    try:
        kind = payload_type(data)
    except (ValueError, RecursionError) as error:
        if is_error:
            raise as_model_answered(data.decode(errors="replace")) from error
        if not json_only:
            return False
        raise ModelGarbled("The model sent an event that is not a JSON object.") from error
    is_error = is_error or (isinstance(kind, str) and kind.endswith("_error"))
    if is_error or b'"error"' in data or kind == _FAILED:
        payload = decode_with_surrogates(data)
        reported = find_error(payload) if json_only else own_error(payload)
        if reported is not None or is_error:
            raise as_model_answered(reported or payload)
    if json_only and kind is None and b'"choices"' not in data:
        reported = described_event_error(decode_with_surrogates(data))
        if reported is not None:
            raise as_model_answered(reported)
    return json_only and isinstance(kind, str) and kind in FINAL_TYPES and kind != _FAILED


class EventStream:
    """The events of one stream.

    Args:
        max_event_bytes: Largest size of an event.
        json_only: The events are those of a known endpoint: JSON objects up to a last event.
    """

    def __init__(self, max_event_bytes: int, *, json_only: bool) -> None:
        self.is_ended = False
        """True once the last event has come."""
        self._splitter = sse.EventSplitter(max_event_bytes)
        self._json_only = json_only
        self._events = list[bytes]()
        self._taken = 0
        self._has_data = False
        self._latest: TextEvent | None = None
        """The latest event, if an event that differs from it in the text alone needs no further check; else None."""

    def feed(self, data: bytes) -> None:
        """Add the next bytes of the body, up to the last event. Raises ModelAnswered, ModelGarbled."""
        for event in self._splitter.feed(data):
            self._add(event)
            if self.is_ended:
                break

    def take(self) -> list[bytes]:
        """Return the events that have come since the last call."""
        if self._json_only and not self._has_data and self._events and self._body_start() in _STARTS_OF_NO_EVENT:
            return []
        events = self._events[self._taken :]
        self._taken += len(events)
        return events

    def whole_body(self) -> bytes | None:
        """Return the body if it has no events, but may be JSON. Raises ModelGarbled if it is a page."""
        if self._has_data or sse.data_of(self._splitter.rest):
            return None
        body = b"".join(self._events) + self._splitter.rest
        if self._body_start() in _STARTS_OF_JSON:
            return body
        if self._body_start() == b"<":
            raise ModelGarbled("The model's answer is a page (HTML or XML), and not a stream of events.")
        return None

    def _body_start(self) -> bytes:
        """Return the first byte of the body that is not blank. The fields of events begin with letters."""
        return (self._events[0] if self._events else self._splitter.rest).lstrip()[:1]

    def end(self) -> None:
        """Add what is missing when the body has ended without its last event.

        Raises ModelAnswered if its last bytes are an error, ModelCut if the answer is not whole.
        """
        rest = self._splitter.rest
        if not self._json_only:
            self._events += [sse.DONE if sse.data_of(rest).startswith(b"[DONE]") else rest] * bool(rest)
            return
        if sse.data_of(rest):
            try:
                self._add(rest.rstrip(b"\r\n") + b"\n\n")
            except ModelGarbled:
                raise ModelCut from None
        if not self.is_ended:
            last = missing_end(self._events, has_mark=False)
            if last is None:
                raise self._error_of_end()
            self._events.append(last)

    def _error_of_end(self) -> ModelAnswered | ModelCut:
        """Return the error for a stream that is not whole; one that has only described an error is that error."""
        payloads = [payload for payload in decode_payloads(self._events) if not is_without_answer(payload)]
        described = is_description(payloads[0]) if len(payloads) == 1 else False
        return as_model_answered(payloads[0]) if described else ModelCut()

    def _add(self, event: bytes) -> None:
        """Add one event, and before it what a stream lacks. Raises ModelAnswered, ModelGarbled."""
        if self._latest is not None and self._latest.text_in(event) is not None:
            self._events.append(event)
            return
        self._latest = None
        valid = as_utf8(event)
        event = valid if self._json_only else event
        try:
            self.is_ended = is_last_event(valid, json_only=self._json_only)
        except ModelGarbled:
            last = missing_end(self._events, has_mark=False)
            if last is None:
                raise
            self.is_ended = True  # some servers end a complete answer with an event of their own
            self._events.append(last)
            return
        is_mark = self.is_ended and sse.data_of(event).startswith(b"[DONE]")
        if is_mark and self._json_only:
            self._events += self._missing_before_mark()
        self._events.append(event)
        self._has_data = self._has_data or bool(sse.data_of(event))
        if self._json_only and not self.is_ended:
            self._latest = text_event(event)

    def _missing_before_mark(self) -> list[bytes]:
        """Return the last event that a stream of a response lacks before its `[DONE]`.

        Raises ModelGarbled if nothing has come before it.
        """
        if all(map(is_without_answer, decode_payloads(self._events))):
            raise ModelGarbled("The model sent no answer.")
        data = next(data for event in reversed(self._events) if (data := sse.data_of(event)))
        missing = missing_end(self._events, has_mark=True) if b'"response.' in data else None
        return [missing] if missing else []
