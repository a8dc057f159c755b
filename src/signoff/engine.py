"""The promise of an engine: something that answers requests for the models of one kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol, runtime_checkable

import msgspec

from signoff.core.answer import Chunk
from signoff.core.model import Model

State = Literal["stopped", "starting", "ready", "busy", "failed"]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is asked: a path such as `/v1/chat/completions`, the JSON body, and the name it was asked for by."""

    path: str
    body: bytes
    target: str
    stream: bool = False
    key: str | None = None


class Engine(Protocol):
    """Answers in chunks: one whole body, or, when `stream` is set, raw events that end in `[DONE]`."""

    def answer(self, model: Model, request: ModelRequest) -> AsyncIterator[Chunk]:
        """Raises ModelFailed and its kin. Closing the iterator, or cancelling the task that reads it,
        stops the model's work within a second.
        """
        ...

    async def start(self) -> None: ...
    async def close(self) -> None: ...


@runtime_checkable
class ProcessEngine(Protocol):
    """An engine whose models are processes that it starts and stops."""

    def process_state(self, model: Model) -> State:
        """How the model's process is, whoever on this host owns it."""
        ...

    async def start_model(self, model: Model) -> None:
        """Returns when the model is ready. Raises ModelUnreachable."""
        ...

    async def stop_model(self, model: Model) -> bool:
        """Ends the model's process on this host, whoever owns it; whether it is gone. The next request starts it."""
        ...
