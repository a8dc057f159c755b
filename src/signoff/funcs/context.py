"""Access of functions to the server while they run: other functions, the caller's prompts, the time."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgspec


class CallContext(msgspec.Struct, frozen=True, kw_only=True):
    """The server as a function sees it, on behalf of one caller."""

    call: Callable[[str, tuple[object, ...]], Any]
    """Call a registered function by name with positional arguments. Raises ValueError if it does not exist."""
    prompts: Callable[[], list[str]]
    """Return the names of the prompts that the caller may use."""
    now: Callable[[], str]
    """Return the current time in UTC, in the format of RFC 3339."""


CALL_CONTEXT: ContextVar[CallContext] = ContextVar("call_context")


def call(name: str, *values: object) -> Any:
    """Return the result of the registered function `name` for `values`. Raises ValueError if it does not exist."""
    return CALL_CONTEXT.get().call(name, values)


def names_of_prompts() -> list[str]:
    """Return the names of the prompts that the caller may use."""
    return CALL_CONTEXT.get().prompts()


def time_now() -> str:
    """Return the current time in UTC, in the format of RFC 3339."""
    return CALL_CONTEXT.get().now()
