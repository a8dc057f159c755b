"""SSRF guard: a host name is resolved once, and only the addresses that were checked are connected to."""

import asyncio
import contextlib
import socket
from ipaddress import ip_address

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from signoff.core.allow_list import AddressRule, checked_host
from signoff.infra.tls import default_context


class AddressBlocked(OSError):
    """No address of a host may be connected to. An OSError, because aiohttp passes those on."""


class CheckedResolver(AbstractResolver):
    """Resolver that removes the addresses which `rule` forbids. Raises AddressBlocked if none is left.

    IP addresses in a URL never reach a resolver: call `checked_host` before each request.
    """

    def __init__(self, resolver: AbstractResolver, rule: AddressRule) -> None:
        self._resolver = resolver
        self._rule = rule

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `aiohttp.abc.AbstractResolver`."""
        name = host.rstrip(".")
        results = await self._resolver.resolve(host, port, family)
        permitted = [result for result in results if self._rule.permits(name, ip_address(result["host"]))]
        if not permitted:
            raise AddressBlocked(self._rule.refusal(name))
        return permitted

    async def close(self) -> None:
        """See `aiohttp.abc.AbstractResolver`."""
        await self._resolver.close()


def blocked_reason(error: BaseException) -> str | None:
    """Return the message of the AddressBlocked among the causes of `error`; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AddressBlocked):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


async def probe(url: str, port: int, rule: AddressRule, resolver: AbstractResolver | None = None) -> None:
    """Connect to the host of `url`, at the first of its addresses that accepts, and disconnect.

    For https, check the certificate too. Raises OSError, such as ssl.SSLError, if no address accepts; AddressBlocked if
    the host has no address that `rule` permits; AddressRefused if the URL is not valid or has a forbidden address.
    """
    name = checked_host(url, rule)
    checked = CheckedResolver(resolver or ThreadedResolver(), rule)
    results = await checked.resolve(name, port, socket.AF_UNSPEC)
    server_name = name if url.lower().startswith("https:") else None
    *others, last = [result["host"] for result in results]
    for host in others:
        with contextlib.suppress(OSError):
            return await _connect(host, port, server_name)
    return await _connect(last, port, server_name)


async def _connect(host: str, port: int, server_name: str | None) -> None:
    """Connect, with TLS if there is a `server_name`, and disconnect."""
    context = None if server_name is None else default_context()
    _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=server_name)
    writer.close()
