"""Webhooks by HTTP POST: to checked addresses, without redirects, within a time limit."""

import asyncio
import io
import os
from collections.abc import Sequence
from http import HTTPStatus

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from signoff.core.allow_list import AllowList, checked_host, parse_literal
from signoff.core.content_coding import decode_content
from signoff.core.delivery import OutgoingMessage
from signoff.errors import AddressRefused, BadRequest, SignoffError, Undelivered
from signoff.infra.proxies import NO_PROXIES, Proxies
from signoff.infra.ssrf import CheckedResolver, blocked_reason
from signoff.infra.tls import tls_fault

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
MAX_ANSWER_BYTES = 64 * 1024


class HttpDeliverer:
    """A sender of HTTP POST requests; see `deliverer.Deliverer`.

    A host name is resolved once for each message, and the connection goes to the address that was checked.
    `resolver` is asked for addresses; None for the one of the system. `total_seconds` bounds an attempt.
    """

    def __init__(
        self,
        allow_list: AllowList,
        *,
        resolver: AbstractResolver | None = None,
        total_seconds: float = TOTAL_SECONDS,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self._allow_list = allow_list
        self._total_seconds = total_seconds
        self._resolver = resolver
        self._proxies = proxies
        self._session: aiohttp.ClientSession | None = None
        self._proxy_session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """See `deliverer.Deliverer`."""
        resolver = self._resolver or aiohttp.ThreadedResolver()
        self._session = self._make_session(CheckedResolver(resolver, self._allow_list))
        if self._proxies:
            self._proxy_session = self._make_session(resolver)

    def _make_session(self, resolver: AbstractResolver) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._total_seconds, sock_connect=CONNECT_SECONDS),
            headers={"user-agent": "signoff", "accept-encoding": "identity"},
            auto_decompress=False,  # the status counts, whatever coding the body has
        )

    async def send(self, message: OutgoingMessage) -> int:
        """See `deliverer.Deliverer`."""
        status, _ = await self._post(message, max_bytes=0)
        return status

    async def ask(self, message: OutgoingMessage, *, seconds: float) -> bytes:
        """See `deliverer.Guardrail`."""
        try:
            async with asyncio.timeout(seconds):
                status, body = await self._post(message, max_bytes=MAX_ANSWER_BYTES)
        except TimeoutError as error:
            raise Undelivered(f"The receiver did not answer within {seconds:g} s.") from error
        if status != HTTPStatus.OK:
            raise Undelivered(f"The receiver answered with status {status}.")
        if len(body) > MAX_ANSWER_BYTES:
            raise Undelivered(f"The answer of the receiver is larger than {MAX_ANSWER_BYTES} bytes.")
        return body

    async def _post(self, message: OutgoingMessage, *, max_bytes: int) -> tuple[int, bytes]:
        """Send `message`, and return the status and the body of the answer.

        At most `max_bytes` + 1 bytes of the body are read, so that the caller sees that it is too large; none if that
        is 0.
        """
        if self._session is None:
            raise RuntimeError("HttpDeliverer.start() was not awaited")
        url = _parse_url(message.address)
        checked_host(str(url), self._allow_list)  # the resolver does not see literal IP addresses
        body, headers = message.body, message.headers
        data = body if len(body) < 2**20 else io.BytesIO(body)
        try:
            proxy = self._find_proxy(url)
            session = self._session if proxy is None else self._proxy_session or self._session
            async with session.post(url, data=data, headers=headers, allow_redirects=False, proxy=proxy) as response:
                return response.status, await _read(response, max_bytes)
        except aiohttp.ConnectionTimeoutError as error:
            raise Undelivered(f"The receiver accepted no connection within {CONNECT_SECONDS:g} s.") from error
        except TimeoutError as error:
            raise Undelivered(f"The receiver did not answer within {self._total_seconds:g} s.") from error
        except aiohttp.ClientConnectorDNSError as error:
            # The same error as for a name inside of this network: callers must not learn which names exist there.
            raise AddressRefused(blocked_reason(error) or self._allow_list.refusal(url.host or "")) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _map_error(error) from error

    async def withdraw(self, addresses: Sequence[str]) -> None:
        """See `deliverer.Deliverer`. Do nothing: receivers keep what they have received."""

    async def is_available(self) -> bool:
        """See `deliverer.Deliverer`."""
        return True

    async def close(self) -> None:
        """See `deliverer.Deliverer`."""
        for session in (self._session, self._proxy_session):
            if session is not None:
                await session.close()
        self._session = self._proxy_session = None

    def _find_proxy(self, url: URL) -> URL | None:
        """Return the proxy for `url`; None if it has none, or if this server itself must check the address.

        A proxy resolves names itself, so only a host that the operator allowed by name goes through it, or one that is
        an address, which was checked. Raises ValueError if the URL of the proxy is not valid.
        """
        host = url.host or ""
        if not self._proxies or not (self._allow_list.has_name(host) or parse_literal(host) is not None):
            return None
        return self._proxies.find(url)


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the decoded body; see `_post`. Raises Undelivered if it is not what `Content-Encoding` says."""
    body = b""
    while 0 < max_bytes >= len(body) and (chunk := await response.content.read(max_bytes + 1 - len(body))):
        body += chunk
    coding = ",".join(response.headers.getall("content-encoding", ()))
    if not (coding and 0 < len(body) <= max_bytes):
        return body
    try:
        return decode_content(body, coding, max_bytes)
    except BadRequest as error:
        raise Undelivered(f"The answer of the receiver cannot be decoded: {error.message}") from error


def _parse_url(url: str) -> URL:
    try:
        return URL(url)
    except ValueError:
        raise AddressRefused("The address of the webhook is not a valid URL.") from None


def _map_error(error: Exception) -> SignoffError:
    """Return the error that callers see: the cause by name, without details of this network."""
    if (refusal := blocked_reason(error)) is not None:
        return AddressRefused(refusal)
    if (fault := tls_fault(error)) is not None:
        return Undelivered(f"The receiver cannot be reached: {fault}.")
    number = error.errno if isinstance(error, OSError) else None
    cause = os.strerror(number) if number is not None and number > 0 else type(error).__name__
    return Undelivered(f"The receiver cannot be reached: {cause}.")
