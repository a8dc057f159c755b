"""Waiting calls by their tokens: they end when the token is revoked or its user disabled."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from signoff.core.access import Caller
from signoff.errors import Unauthorized

log = structlog.get_logger()


class OpenCall:
    """A call that the current task answers."""

    __slots__ = ("caller", "failure", "task")

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.task = asyncio.current_task()
        self.failure: Unauthorized | None = None
        """Error for which the call was cancelled; None unless the caller has lost their rights."""

    def end(self, failure: Unauthorized) -> None:
        """Cancel the task; see `take_cancellation`."""
        if self.task is not None and self.failure is None:
            self.failure = failure
            self.task.cancel()

    def take_cancellation(self) -> Unauthorized | None:
        """Return the error for which this call was cancelled, and withdraw the cancellation; None for another reason.

        Call it where a CancelledError was caught.
        """
        if self.failure is not None and self.task is not None:
            self.task.uncancel()
        return self.failure


class OpenCalls:
    """The calls of this process whose clients wait.

    `refresh` returns a caller with their present rights. Raises Unauthorized if they have none.
    """

    def __init__(self, refresh: Callable[[Caller], Awaitable[Caller]]) -> None:
        self._refresh = refresh
        self._by_token: dict[int, set[OpenCall]] = {}
        self._changed = asyncio.Event()

    def add(self, caller: Caller) -> OpenCall:
        """Add the call of the current task. A caller without a token has the rights of the settings, which stay."""
        call = OpenCall(caller)
        if caller.token_id:
            self._by_token.setdefault(caller.token_id, set()).add(call)
        return call

    def drop(self, call: OpenCall) -> None:
        """Drop a call that has ended."""
        calls = self._by_token.get(call.caller.token_id)
        if calls is not None:
            calls.discard(call)
            if not calls:
                del self._by_token[call.caller.token_id]

    def on_change(self) -> None:
        """Handle a change of users or tokens."""
        self._changed.set()

    async def run(self) -> None:
        """End the calls whose callers have lost their rights, after each change. Never returns."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for calls in list(self._by_token.values()):
                await self._check(calls)

    async def _check(self, calls: set[OpenCall]) -> None:
        """Check the calls of one token."""
        call = next(iter(calls), None)
        if call is None:
            return
        try:
            await self._refresh(call.caller)
        except Unauthorized as failure:
            for each in list(calls):
                each.end(failure)
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; the next change or expiry checks again
            log.warning("open_call_check_failed", error=repr(error))
