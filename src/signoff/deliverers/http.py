"""Messages by HTTP: to addresses that were checked, without redirects, within a limit of time."""

from __future__ import annotations

import io
import os

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from signoff.core.allow_list import AllowList, checked_host
from signoff.core.delivery import OutgoingMessage
from signoff.errors import AddressRefused, SignoffError, Undelivered
from signoff.infra.ssrf import CheckedResolver, blocked_reason

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0


class HttpDeliverer:
    """See `deliverer.Deliverer`. A name is resolved once a message, and that very answer is checked and connected to."""

    def __init__(
        self, reach: AllowList, *, resolver: AbstractResolver | None = None, total_seconds: float = TOTAL_SECONDS
    ) -> None:
        self._reach = reach
        self._total_seconds = total_seconds
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """See `deliverer.Deliverer`."""
        connector = aiohttp.TCPConnector(
            resolver=CheckedResolver(self._resolver or aiohttp.ThreadedResolver(), self._reach),
            use_dns_cache=False,
            force_close=True,
            limit=0,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._total_seconds, sock_connect=CONNECT_SECONDS),
            headers={"user-agent": "signoff", "accept-encoding": "identity"},
        )

    async def send(self, message: OutgoingMessage) -> int:
        """See `deliverer.Deliverer`."""
        if self._session is None:
            raise RuntimeError("HttpCourier.start() was not awaited")
        target = _parsed(message.address)
        checked_host(str(target), self._reach)  # literal addresses pass the resolver by
        body, headers = message.body, message.headers
        data = body if len(body) < 2**20 else io.BytesIO(body)
        try:
            async with self._session.post(target, data=data, headers=headers, allow_redirects=False) as response:
                return response.status
        except TimeoutError as error:
            raise Undelivered("The receiver took too long.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _reason(error) from error

    async def close(self) -> None:
        """See `deliverer.Deliverer`."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _parsed(url: str) -> URL:
    try:
        return URL(url)
    except ValueError:
        raise AddressRefused("This is not a URL.") from None


def _reason(error: Exception) -> SignoffError:
    """The error under its own name, with enough for the receiver's owner to find it."""
    if (refusal := blocked_reason(error)) is not None:
        return AddressRefused(refusal)
    number = error.errno if isinstance(error, OSError) else None
    what = os.strerror(number) if number is not None and number > 0 else type(error).__name__
    return Undelivered(f"The receiver cannot be reached: {what}.")
