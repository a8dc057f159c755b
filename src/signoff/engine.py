"""Interface of an engine: an adapter that sends requests to models of one kind."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import msgspec

from signoff.core.model import Model

ProcessState = Literal["stopped", "starting", "ready", "busy", "failed"]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a model."""

    path: str
    """The API path, such as `/v1/chat/completions`, with the method before it if that is not POST: `GET /v1/files`."""

    body: bytes
    """The JSON body as the caller sent it. A body of another type is JSON too: see `core.binary`."""

    target: str
    """The name that the caller used for the model; it differs from the model's own name if that ends in `*`."""

    stream: bool = False
    """True if the caller wants server-sent events instead of one whole body."""

    key: str | None = None
    """The upstream's API key in clear text; None if the model needs none."""

    headers: Mapping[str, str] = {}
    """Headers of the caller that the model may see, with names in lower case."""

    response_headers: dict[str, str] = {}
    """Receiver of the upstream's headers about its rate limits, such as `x-ratelimit-remaining-requests`."""


class Sink(Protocol):
    """A receiver of the events of a streamed answer."""

    async def send(self, events: Sequence[bytes]) -> None:
        """Take the next server-sent events, each with its blank line.

        Return when more may follow, so that a slow reader slows the model down.
        """
        ...


class EventSink:
    """A sink that keeps the events that it receives."""

    def __init__(self) -> None:
        self.received = list[bytes]()
        """The events, in order."""

    async def send(self, events: Sequence[bytes]) -> None:
        self.received += events


class Engine(Protocol):
    """An adapter for the models of one kind. Any number of `answer` calls may run at the same time."""

    async def answer(self, model: Model, request: ModelRequest, sink: Sink) -> bytes | None:
        """Send `request` to `model`, and return its whole answer: one JSON body.

        If `request.stream` is set and the model streams, send the events to `sink` as they come, and return None.
        Events of a completion end with `[DONE]`, events of a response with the event that completes it. Events that
        come together are sent together. The engine applies `model.timeouts`. Cancelling the call stops the model's
        work within one second.

        Raises:
            BadRequest: The model cannot handle this request.
            ModelFailed: The model failed. Its subclasses tell how: `ModelAnswered` for an error status of the upstream,
                `ModelUnreachable`, `ModelCut`, `ModelCrashed`, `ModelGarbled`, `ModelTimedOut`, `ModelBusy`.
        """
        ...

    async def start(self) -> None:
        """Prepare the engine. Called once, before the first `answer`. Models need not be ready, or even reachable."""
        ...

    async def close(self) -> None:
        """Release what the engine holds, and stop what it started. Called once, after all calls have ended."""
        ...


@runtime_checkable
class OperationEngine(Protocol):
    """An engine whose models may have operations besides answers, such as `getlogs`."""

    async def operate(self, model: Model, operation: str, key: str | None) -> bytes | None:
        """Ask `model` for the operation, and return its JSON; None if the model has no such operation, or fails."""
        ...


@runtime_checkable
class ProcessEngine(Protocol):
    """An engine whose models are processes on this host, which it starts and stops.

    Several Signoff processes on one host share a model's process. Each method acts on that process, whichever Signoff
    process started it.
    """

    def process_state(self, model: Model) -> ProcessState:
        """Return the state of the model's process.

        `stopped` means not running, `starting` not ready yet, `ready` waiting for requests, `busy` handling a request,
        and `failed` that the last start did not succeed, that the process ended unexpectedly, or that `model` has no
        command.
        """
        ...

    async def start_model(self, model: Model) -> None:
        """Start the model's process unless it is running, and return when it is ready.

        Raises ModelUnreachable if it is not ready within `model.start_seconds`, or ends as soon as it runs.
        """
        ...

    async def stop_model(self, model: Model) -> bool:
        """Stop the model's process and return True when it is gone; False if it still runs after some seconds.

        Requests that it is handling fail. The next request starts the process again.
        """
        ...
