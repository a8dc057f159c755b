"""Requests to services that the operator names, such as an OpenID Connect provider, and their answers in JSON.

The services may be in a private network. Requests go through the proxies of the environment, follow no redirect, and
end after a time; answers have a maximum size.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from signoff.core.content_coding import decode_content
from signoff.core.decode import decode_json
from signoff.errors import BadRequest
from signoff.infra.proxies import NO_PROXIES, Proxies
from signoff.infra.tls import default_context, tls_fault

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 10.0
MAX_ANSWER_BYTES = 1024 * 1024


class RequestFailed(Exception):
    """No usable answer to a request; the message is the reason, for a sentence that names the service."""


class JsonClient:
    """HTTP client that opens a connection for each request, because requests are few.

    `total_seconds` limits the time of a request and its answer.
    """

    def __init__(self, proxies: Proxies = NO_PROXIES, *, total_seconds: float = TOTAL_SECONDS) -> None:
        self._proxies = proxies
        self._total_seconds = total_seconds

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON object of the answer to a GET. Raises RequestFailed."""
        return await self._send("GET", url, None, headers)

    async def post(
        self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON object of the answer to a form. Raises RequestFailed."""
        return await self._send("POST", url, form, headers)

    async def _send(
        self, method: str, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str] | None
    ) -> tuple[int, dict[str, Any]]:
        import aiohttp  # most commands need no client
        from yarl import URL

        timeout = aiohttp.ClientTimeout(total=self._total_seconds, sock_connect=CONNECT_SECONDS)
        own = {"user-agent": "signoff", "accept": "application/json", "accept-encoding": "identity"}
        try:
            address = URL(url)
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=default_context(), force_close=True),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=timeout,
                    auto_decompress=False,
                ) as session,
                session.request(
                    method,
                    address,
                    data=form,
                    headers=own | dict(headers or {}),
                    allow_redirects=False,
                    proxy=self._proxies.find(address),
                ) as response,
            ):
                return response.status, await _read(response)
        except TimeoutError:
            raise RequestFailed(f"it did not answer within {self._total_seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RequestFailed(_reason(error)) from error


async def _read(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises RequestFailed."""
    if 300 <= response.status < 400:
        raise RequestFailed("it answered with a redirect, which is not followed; use the address to which it leads")
    body = b""
    while len(body) <= MAX_ANSWER_BYTES and (chunk := await response.content.read(MAX_ANSWER_BYTES + 1 - len(body))):
        body += chunk
    if len(body) > MAX_ANSWER_BYTES:
        raise RequestFailed(f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
    try:
        coding = ",".join(response.headers.getall("content-encoding", ()))
        return decode_json(decode_content(body, coding, MAX_ANSWER_BYTES), dict[str, Any])
    except (BadRequest, ValueError, RecursionError):
        raise RequestFailed(f"its answer, with the status {response.status}, is not a JSON object") from None


def _reason(error: Exception) -> str:
    if (fault := tls_fault(error)) is not None:
        return fault
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number > 0:
        return os.strerror(number).lower()
    name = type(error).__name__
    return "its host name cannot be resolved" if "DNS" in name else f"the request failed ({name})"
