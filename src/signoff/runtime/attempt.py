"""Attempt: what this process is doing for a job, and what has come of it so far."""

import asyncio
import time
from collections.abc import Sequence

import msgspec

from signoff.core import sse
from signoff.core.api_paths import RESPONSES, STREAMED
from signoff.core.dialects.answer import Answer
from signoff.core.dialects.response_stream import FINAL_EVENTS
from signoff.core.dialects.stream_state import (
    FINAL_MEDIA_TYPES,
    FINAL_TYPES,
    event_type,
    has_content,
    has_escaped_letters,
    is_of_type,
)
from signoff.core.job import Job
from signoff.core.limits import Reservation
from signoff.core.reviews.ruling import Ruling
from signoff.core.upstream_objects import object_id_in_event
from signoff.engine import Sink
from signoff.errors import ModelGarbled, SignoffError
from signoff.runtime.pools import Slot

MAX_ANSWER_BYTES = 64 * 1024 * 1024
# Largest size of the events before the first content, such as comments, which wait for it. The first event of a
# response repeats its instructions and tools.
MAX_PREAMBLE_BYTES = 1024 * 1024
_RESPONSE_ENDS = tuple(kind.encode() for kind in FINAL_EVENTS)


class PhaseTimes:
    """Times of an attempt, in seconds of `time.perf_counter`; the clock of uvloop has whole milliseconds only."""

    __slots__ = ("began", "ended", "requested")

    def __init__(self) -> None:
        self.began = time.perf_counter()
        """Time at which the attempt was created."""
        self.requested: float | None = None
        """Time at which the first model was asked."""
        self.ended: float | None = None
        """Time at which the answer of the last model had ended."""


class Attempt:
    """The work of this process on one job, from the reservation to the recorded end.

    It is the sink of the engine: it keeps the answer, and passes the events of a stream on at once if it has a `sink`
    itself. Events before the first content wait for it, because another model can be asked until then. The last event
    waits until `send_last`, because the job must be settled before its caller sees the end.

    Times are the event loop's, in seconds: `arrived_at` is when the attempt was created, `started_at` when the model
    was asked, `ended_at` when its answer ended. All but the first belong to the latest try: a waiting call tries again
    after a failure that may pass.

    Args:
        job: The job, leased or not stored yet; `initial_job` stays as it is, and `job` changes with the attempt.
        stream: Ask the model for a stream.
    """

    is_cut_off = False
    """True once it was cancelled: its caller left, or the process stops."""

    def __init__(self, job: Job, *, stream: bool) -> None:
        self.initial_job: Job = job
        self.job: Job = job
        """The job with the model that answers, and once its usage is counted with what the attempt used."""
        self.stream = stream
        self.sink: Sink | None = None
        """Receiver of the events before the job is settled; None to keep them only."""
        self.model = job.model
        """Name of the model that is being asked."""
        self.slot: Slot | None = None
        """Slot at the endpoint that is being asked, if the model has a pool."""
        self.body: bytes | None = None
        """The whole answer, if it did not come as events."""
        self.events: list[bytes] = []
        """The events of a streamed answer."""
        self.outcome: Answer | SignoffError | None = None
        """The answer or the error, once there is one."""
        self.refusals: list[tuple[Slot, SignoffError]] = []
        """Errors of endpoints that are to blame only if another endpoint answers the request."""
        self.upstream_headers: dict[str, str] = {}
        """Headers of the upstream about its rate limits, by name in lower case."""
        self.wants_logprobs = False
        """True if the request asks for log-probabilities for the policies of the job, and not for its caller."""
        self.translated_logprobs: list[float] | None = None
        """Log-probabilities of the chat that the answer is translated from; None unless the policies read them."""
        self.has_asked_for_logprobs = False
        """True if a chat that stands for the request has asked for log-probabilities."""
        self.is_reserved = False
        """True once the job is known to be within its limits."""
        self.reservation: Reservation | None = None
        """The reservation under the limits; None if none applies."""
        self.is_released = False
        """True once the reservation is being settled."""
        self.is_counted = False
        """True once `job` has what the attempt used."""
        self.awaits_person = False
        """True if a person, who has been asked in place of a model, is yet to write the answer."""
        self.is_parked = False
        """True if the job is a run that waits for its steps; its lease has been released."""
        self.is_lost = False
        """True once the lease is lost: the job was cancelled, or was rescued by another process."""
        self._now = asyncio.get_running_loop().time  # unlike the wall clock, it never goes back
        self.arrived_at, self.phases = self._now(), PhaseTimes()
        self.started_at: float | None = None
        self.first_byte_at: float | None = None
        """Time of the first content of the answer."""
        self.ended_at: float | None = None
        self._task: asyncio.Task[object] | None = None
        self._size = 0
        self._held_back: list[bytes] = []

    @property
    def has_begun(self) -> bool:
        """True once content of the answer has come, and no other model can be asked."""
        return self.first_byte_at is not None

    def start(self) -> None:
        """Record that a model is asked now."""
        self.started_at, self.first_byte_at, self.ended_at = self._now(), None, None
        self.phases.requested = self.phases.requested or time.perf_counter()

    def discard(self) -> None:
        """Discard what another endpoint or model has sent; call it before each request to an endpoint."""
        self.body, self._size = None, 0
        self.events.clear()
        self.upstream_headers.clear()
        self._held_back.clear()
        if self.job.upstream_object_id is not None:
            self.job = msgspec.structs.replace(self.job, upstream_object_id=None)

    async def send(self, events: Sequence[bytes]) -> None:
        """Keep the next events of the answer, and pass them on. Raises ModelGarbled if the answer is too large."""
        if not events:
            return
        self._count_bytes(sum(map(len, events)))
        self.events += events
        if self.first_byte_at is None:
            self._record_response(events)
            if not (
                self._is_background
                or self._size > MAX_PREAMBLE_BYTES
                or any(has_content(event, self.job.path) for event in events)
            ):
                return
            self._begin()
            events = self.events[:]
        if self.sink is None:
            return
        last = (i for i, event in enumerate(events) if is_last_event(event, self.job.path))
        end = 0 if self._held_back else next(last, len(events))
        self._held_back += events[end:]
        if end:
            await self.sink.send(events[:end])

    def take(self, body: bytes) -> None:
        """Keep a whole answer, in place of any events. Raises ModelGarbled if it is too large."""
        self.events.clear()
        self._held_back.clear()
        self._size = 0
        self._count_bytes(len(body))
        if self.first_byte_at is None:
            self._begin()
        self.body = body

    def pass_to_person(self, review_queue: str | None) -> None:
        """Leave the answer to a person, who writes it on the desk; the job is held there, whatever its policy was."""
        self.discard()
        self._begin()
        self.awaits_person = True
        policy = msgspec.structs.replace(self.job.policy, review="always")
        ruling = Ruling(outcome="hold", queue=review_queue)
        self.job = msgspec.structs.replace(self.job, policy=policy, ruling=ruling)

    async def send_last(self) -> None:
        """Pass on the last event, which was held back until the job was settled, and what came after it."""
        if self.sink is not None and self._held_back:
            await self.sink.send(self._held_back)

    def end(self) -> None:
        """Record the end of the answer. Later calls do nothing."""
        self.ended_at = self.ended_at or self._now()
        self.phases.ended = self.phases.ended or time.perf_counter()

    def attribute_refusals(self) -> None:
        """Blame the endpoints that refused the request if another one answered it, and the request otherwise."""
        for slot, error in self.refusals:
            if self.has_begun:
                slot.failed(error)
            else:
                slot.succeeded()
        self.refusals.clear()

    def set_task(self, task: asyncio.Task[object] | None) -> None:
        """Set the task that works on the job (None: no task). It is cancelled if the lease is lost already."""
        self._task = task
        if self.is_lost and task is not None:
            task.cancel()

    def on_lease_lost(self) -> None:
        """Cancel the task that works on the job."""
        self.is_lost = True
        self.set_task(self._task)

    def _count_bytes(self, size: int) -> None:
        self._size += size
        if self._size > MAX_ANSWER_BYTES:
            raise ModelGarbled(f"The model's answer is larger than {MAX_ANSWER_BYTES} bytes.", retryable=False)

    @property
    def _is_background(self) -> bool:
        """True if the answer goes on without its caller, who needs the id of the response at once."""
        return self.job.path == RESPONSES and b'"background"' in self.job.body

    def _record_response(self, events: Sequence[bytes]) -> None:
        """Record the id of the response that the first events name."""
        if self.job.path != RESPONSES or self.job.upstream_object_id is not None:
            return
        object_id = next((name for event in events if (name := object_id_in_event(sse.data_of(event)))), None)
        if object_id is not None:
            self.job = msgspec.structs.replace(self.job, upstream_object_id=object_id)

    def _begin(self) -> None:
        """Record that the answer has begun, and which model sends it."""
        self.first_byte_at = self._now()
        if self.slot is not None:
            self.slot.succeeded()
        if self.model != self.job.model:
            self.job = msgspec.structs.replace(self.job, model=self.model)


def is_last_event(event: bytes, path: str) -> bool:
    """Return True if `event` ends the stream of an answer of `path`, or an image in a stream of several."""
    if not event.startswith(b"data: {") and b"[DONE]" in event and sse.data_of(event).startswith(b"[DONE]"):
        return True
    if _may_be_last(event) and event_type(event) in FINAL_TYPES:
        return True
    return path not in STREAMED and any(is_of_type(event, kind) for kind in FINAL_MEDIA_TYPES)


def _may_be_last(event: bytes) -> bool:
    """Return True if an event has the letters of the type of a last one, which parts of a chat hardly ever have.

    To decode each event would take longer than all else that happens to it here, and `find` is faster than `in`.
    """
    if event.find(b"response.") >= 0 and any(kind in event for kind in _RESPONSE_ENDS):
        return True
    return event.find(b"message_stop") >= 0 or (event.find(b"\\") >= 0 and has_escaped_letters(event))
