"""What a function can ask of the server while it runs: other functions, the caller's prompts, and the time."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgspec


class CallContext(msgspec.Struct, frozen=True, kw_only=True):
    """The server around a call, as one caller may use it."""

    call: Callable[[str, tuple[object, ...]], Any]
    prompts: Callable[[], list[str]]
    now: Callable[[], str]


CALL_CONTEXT: ContextVar[CallContext] = ContextVar("around")


def call(name: str, *values: object) -> Any:
    """What the registered function called `name` gives for `values`. Raises ValueError where there is none."""
    return CALL_CONTEXT.get().call(name, values)


def names_of_prompts() -> list[str]:
    """The prompts that the caller may use."""
    return CALL_CONTEXT.get().prompts()


def time_now() -> str:
    """The time, as RFC 3339 has it, in UTC."""
    return CALL_CONTEXT.get().now()
