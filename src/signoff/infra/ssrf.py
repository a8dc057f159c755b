"""The guard on the way out: a name is resolved once, and the address that was checked is the one connected to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from ipaddress import ip_address

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from signoff.core.allow_list import AddressRule, checked_host


class AddressBlocked(OSError):
    """A refusal, in a form that aiohttp passes on."""


class CheckedResolver(AbstractResolver):
    """The answers of another resolver, without those that may not be reached. Raises Refused if none is left.

    Addresses that stand in a URL pass every resolver by: `checked_host` sees to them, before each request.
    """

    def __init__(self, resolver: AbstractResolver, guard: AddressRule) -> None:
        self._resolver = resolver
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `aiohttp.abc.AbstractResolver`."""
        name = host.rstrip(".")
        found = await self._resolver.resolve(host, port, family)
        good = [one for one in found if self._guard.permits(name, ip_address(one["host"]))]
        if not good:
            raise AddressBlocked(self._guard.refusal(name))
        return good

    async def close(self) -> None:
        """See `aiohttp.abc.AbstractResolver`."""
        await self._resolver.close()


def blocked_reason(error: BaseException) -> str | None:
    """What was refused, if that is why `error` was raised."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AddressBlocked):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return None


async def probe(url: str, port: int, rule: AddressRule, resolver: AbstractResolver | None = None) -> None:
    """Connects to the host of `url`, at the first of its addresses that answers, and leaves.

    Raises OSError, AddressRefused.
    """
    checked = CheckedResolver(resolver or ThreadedResolver(), rule)
    found = await checked.resolve(checked_host(url, rule), port, socket.AF_UNSPEC)
    *others, last = [one["host"] for one in found]
    for host in others:
        with contextlib.suppress(OSError):
            return await _connect(host, port)
    return await _connect(last, port)


async def _connect(host: str, port: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
