"""Simulated models, which answer, fail, hang, or are slow, and webhook receivers that do the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import msgspec

from signoff.core import sse
from signoff.core.delivery import OutgoingMessage
from signoff.core.model import Model, Timeouts
from signoff.engine import ModelRequest, Sink
from signoff.errors import ModelAnswered, ModelCut, ModelGarbled, ModelTimedOut, ModelUnreachable, Undelivered
from signoff.server.dispatcher import MAX_RUNNING_PER_HOST
from simulation.checker import Checker
from simulation.network import Network, resolve

TOTAL_SECONDS = 20.0
POST_SECONDS = 15.0
TIMEOUTS = Timeouts(total_seconds=TOTAL_SECONDS)
MODELS = (
    Model(name="plain", kind="echo", timeouts=TIMEOUTS, default=True),
    Model(name="twice", kind="echo", timeouts=TIMEOUTS, attempts=2),
    Model(name="watched", kind="echo", timeouts=TIMEOUTS, review="always"),
)


class SimEngine:
    """Engine that answers every request differently, and names the request in its answer."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def answer(self, model: Model, request: ModelRequest, sink: Sink) -> bytes | None:
        """See `engine.Engine`."""
        weather, random_float = self._network.weather, self._network.world.random_float
        await asyncio.sleep(random_float.expovariate(1 / random_float.choice(weather.model_seconds)))
        if weather.happens(weather.models_fail):
            await self._fail()
        body = _completion(text_of(request.body), self._network.world.number())
        if not request.stream:
            return body
        await sink.send([sse.event(body)])
        await asyncio.sleep(random_float.uniform(0, 1))
        if weather.happens(weather.models_fail / 4):
            raise ModelCut
        await sink.send([sse.DONE])
        return None

    async def start(self) -> None:
        """Start nothing."""

    async def close(self) -> None:
        """Close nothing."""

    async def _fail(self) -> None:
        match self._network.world.random_float.randrange(7):
            case 0:
                raise ModelUnreachable
            case 1:
                raise ModelAnswered(
                    429, "Too many.", retry_after_seconds=self._network.world.random_float.uniform(0, 10)
                )
            case 2:
                raise ModelAnswered(500, "Oh.")
            case 3:
                raise ModelAnswered(400, "No.")
            case 4:
                raise ModelGarbled
            case 5:
                raise ModelCut
            case _:
                await asyncio.sleep(TOTAL_SECONDS)
                raise ModelTimedOut


def _completion(text: str, number: int) -> bytes:
    message = {"role": "assistant", "content": f"answer {number} to {text}"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    choices = [{"index": 0, "message": message, "delta": message, "finish_reason": "stop"}]
    return msgspec.json.encode({"id": f"c{number}", "choices": choices, "usage": usage})


def text_of(body: bytes) -> str:
    """Return the text in a body that `body_of` made."""
    return msgspec.json.decode(body)["messages"][-1]["content"]


def body_of(text: str, *, stream: bool = False) -> bytes:
    """Return the body of a request with the text `text`."""
    return msgspec.json.encode({"messages": [{"role": "user", "content": text}]} | ({"stream": True} if stream else {}))


class SimDeliverer:
    """Deliverer whose receivers accept or refuse messages; the checker sees every message that arrives."""

    def __init__(self, network: Network, checker: Checker) -> None:
        self._network = network
        self._checker = checker
        self._running = Counter[str]()

    async def start(self) -> None:
        """Start nothing."""

    async def close(self) -> None:
        """Close nothing."""

    async def withdraw(self, addresses: Sequence[str]) -> None:
        """Withdraw nothing: receivers keep what they got."""

    async def is_available(self) -> bool:
        """Return True."""
        return True

    async def send(self, message: OutgoingMessage) -> int:
        """See `deliverer.Deliverer`."""
        host = message.address.split("/")[2]
        self._running[host] += 1
        self._checker.law(self._running[host] <= MAX_RUNNING_PER_HOST["webhook"], "a few at a time to one host", host)
        future = asyncio.get_running_loop().create_future()
        self._network.outside.call_later(self._network.weather.latency(), self._arrive, message, future)
        try:
            async with asyncio.timeout(POST_SECONDS):
                return await future
        except TimeoutError as error:
            raise Undelivered("The receiver did not answer in time.") from error
        finally:
            self._running[host] -= 1

    def _arrive(self, message: OutgoingMessage, future: asyncio.Future[int]) -> None:
        """Hand a message to its receiver; the receiver's response may be lost."""
        url, message_id, body = message.address, message.headers["webhook-id"], message.body
        weather = self._network.weather
        fault = self._network.world.random_float.randrange(4) if weather.happens(weather.receivers_fail) else None
        if fault == 0:
            self._reply(future, Undelivered("Nobody is there."))
            return
        status = 410 if url.endswith("/gone") else 500 if fault == 1 else 204
        self._checker.posted(message_id, url, body, status)
        if fault == 2:
            self._reply(future, Undelivered("The connection broke."))
        elif fault != 3:
            self._reply(future, status)

    def _reply(self, future: asyncio.Future[int], result: int | Exception) -> None:
        loop = future.get_loop()
        loop.call_later(self._network.weather.latency(), resolve, future, result)
