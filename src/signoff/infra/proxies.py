"""Proxies for outgoing requests, from the usual environment variables.

`HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` are read in capitals and in small letters. `NO_PROXY` lists host names, which
stand for the names below them too, addresses, networks such as 10.0.0.0/8, or `*` for all. `localhost` and loopback
addresses are never reached through a proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from yarl import URL


class Proxies:
    """The proxies by the scheme of a URL, as `urllib.request.getproxies_environment` returns them.

    The key `no` has the list of hosts that are reached directly. A function is called when a proxy is first looked for.
    """

    def __init__(self, by_scheme: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None) -> None:
        self._source = by_scheme or {}

    @classmethod
    def from_environment(cls) -> Self:
        """Return the proxies of this process's environment, which is read when they are first needed."""
        return cls(_read_environment)

    @cached_property
    def _by_scheme(self) -> Mapping[str, str]:
        return self._source() if callable(self._source) else self._source

    def __bool__(self) -> bool:
        """Return True if there is any proxy."""
        return not self._by_scheme.keys() <= {"no"}

    def find(self, url: URL) -> URL | None:
        """Return the URL of the proxy for `url`, with its user and password if it has them; None for none.

        Raises ValueError if the proxy's URL is not valid, or its scheme is neither http nor https.
        """
        proxy = self._by_scheme.get(url.scheme)
        host = url.host or ""
        if not proxy or _is_local(host) or self._is_excluded(host, url.port):
            return None
        from yarl import URL

        parsed = URL(proxy if "://" in proxy else f"http://{proxy}")
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ValueError("the proxy's URL must begin with http:// or https://")
        return parsed

    def _is_excluded(self, host: str, port: int | None) -> bool:
        """Return True if NO_PROXY has `host`, a name above it, a network with it, or `*`; an entry may have a port."""
        names = {host.lower(), f"{host.lower()}:{port}"}
        for each in self._by_scheme.get("no", "").lower().split(","):
            entry = each.strip()
            name = entry.removeprefix("*").removeprefix(".")
            if entry == "*" or (name and any(own == name or own.endswith(f".{name}") for own in names)):
                return True
            with suppress(ValueError):
                if ip_address(host) in ip_network(entry, strict=False):
                    return True
        return False


NO_PROXIES = Proxies()


def _read_environment() -> Mapping[str, str]:
    from urllib.request import getproxies_environment  # imports an HTTP client, which commands do not need

    return getproxies_environment()


def _is_local(host: str) -> bool:
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with suppress(ValueError):
        return ip_address(name).is_loopback
    return False
