"""What every command does: take a desk, speak to a terminal, end with one line when something is wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar, cast

from rich.console import Console

from signoff.core.access import Caller
from signoff.core.cache import CacheRule
from signoff.settings import Settings
from signoff.work.services import Services

T = TypeVar("T")
OPERATOR = Caller(user_id=0, token_id=0, role="admin", email="operator")
# Control characters but for tab and newline, and those that turn the direction of writing.
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What models say is shown as it is: no markup, no emoji.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=True)


def run(settings: Settings, function: Callable[[Services], Awaitable[T]]) -> T:
    """The result of `function` with a desk that looks and writes."""
    from signoff.server.bootstrap import open_services

    async def with_desk() -> T:
        async with open_services(settings) as services:
            return await function(services)

    return asyncio.run(with_desk())


def address_of(host: str, port: int) -> str:
    """Where a server that listens there is reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- shown, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def rule_named(text: str | None) -> CacheRule | None:
    """What --cache says."""
    if text not in {None, "always", "never"}:
        stop("--cache is always or never.")
    return cast("CacheRule | None", text)


def shown(text: str) -> str:
    """`text` without anything that would steer the terminal."""
    return STEERS.sub("�", text)


def stop(message: str) -> NoReturn:
    """Ends the command with one line, and exit code 1."""
    err.print(message, style="red")
    raise SystemExit(1)
