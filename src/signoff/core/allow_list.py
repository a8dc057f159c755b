"""Which addresses that somebody gave this server may go to: public ones and what is allowed beside them; models'."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol
from urllib.parse import urlsplit

from signoff.errors import AddressRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_URL = 2048
# RFC 4291: global unicast. What carries an IPv4 address inside (mapped, translated by NAT64) is outside of it, but for
# 6to4. Python knows the registries of its own day; 3fff::/20 (RFC 9637) and 192.88.99.0/24 (RFC 7526) are newer.
_UNICAST_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC: tuple[Network, ...] = (IPv6Network("2002::/16"), IPv6Network("3fff::/20"), IPv4Network("192.88.99.0/24"))
# Where cloud machines ask for their own secrets, beside the link-local addresses.
_METADATA: tuple[Address, ...] = (
    IPv6Address("fd00:ec2::254"),
    IPv6Address("fd20:ce::254"),
    IPv4Address("100.100.100.200"),
    IPv4Address("168.63.129.16"),
    IPv4Address("192.0.0.192"),
)
_CARRIES_IN_ITS_END = tuple(
    IPv6Network(text) for text in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_METADATA_NAMES = {"metadata.google.internal", "metadata"}


class AddressRule(Protocol):
    """Which addresses may be connected to."""

    def permits(self, host: str, address: Address) -> bool:
        """Whether `address`, which `host` stands for, may be connected to."""
        ...

    def refusal(self, host: str) -> str:
        """Why not, in a sentence."""
        ...


class AllowList:
    """What may be reached beside public addresses: names, addresses and networks (`10.1.0.0/16`)."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        hosts, networks = set[str](), list[Network]()
        for text in allowed:
            try:
                networks.append(ip_network(text, strict=False))
            except ValueError:
                hosts.add(text.lower())
        self._hosts, self._networks = frozenset(hosts), tuple(networks)

    def permits(self, host: str, address: Address) -> bool:
        """Whether `address`, which `host` stands for, may be connected to."""
        allowed = any(address in network for network in self._networks if network.version == address.version)
        return allowed or host.lower() in self._hosts or is_public(address)

    def refusal(self, host: str) -> str:
        """See `Guard`."""
        return f"{host} is not at a public address; the operator can allow it (webhook_allow)."


class ModelAddressRule:
    """Where models may be: anywhere, private networks too, but not where a machine asks for its own secrets.

    An IPv6 address that carries an IPv4 one (mapped, translated, tunnelled) may not be where that one may not.
    """

    def permits(self, host: str, address: Address) -> bool:
        """See `Guard`."""
        return host.lower() not in _METADATA_NAMES and not any(
            _is_forbidden_for_models(each) for each in _embedded_addresses(address)
        )

    def refusal(self, host: str) -> str:
        """See `Guard`."""
        return f"{host} is no address of a model."


MODEL_ADDRESSES = ModelAddressRule()


def checked_host(url: str, rule: AddressRule) -> str:
    """The host of `url`. Raises AddressRefused: unusable, or literally an address that may not be reached."""
    host = _host_of(url)
    is_here = host == "localhost" or host.endswith(".localhost")
    address = IPv4Address("127.0.0.1") if is_here else parse_literal(host)
    if address is not None and not rule.permits(host, address):
        raise AddressRefused(rule.refusal(host))
    return host


def check_model_url(url: str) -> None:
    """Raises AddressRefused for a URL that no model can be at, as far as the URL alone tells."""
    host = checked_host(url, MODEL_ADDRESSES)
    if host.lower() in _METADATA_NAMES:
        raise AddressRefused(MODEL_ADDRESSES.refusal(host))


def parse_literal(host: str) -> Address | None:
    """The address that `host` is, if it is one, in any way that resolvers understand: `127.1`, `0x7f000001`."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def is_public(address: Address) -> bool:
    """Whether anybody on the internet may be there."""
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    if isinstance(address, IPv6Address) and address not in _UNICAST_V6:
        return False
    return not any(address in network for network in _NOT_PUBLIC if network.version == address.version)


def _is_forbidden_for_models(address: Address) -> bool:
    return address.is_link_local or address.is_multicast or address in _METADATA


def _embedded_addresses(address: Address) -> Iterator[Address]:
    """The address, and those that it carries: RFC 4291 (mapped, compatible), 6052, 8215 (NAT64), 2765, 3056, 4380."""
    if isinstance(address, IPv4Address):
        yield address
        return
    plain = IPv6Address(int(address))  # without a zone
    yield plain
    if any(plain in network for network in _CARRIES_IN_ITS_END):
        yield IPv4Address(int(plain) & 0xFFFF_FFFF)
    yield from (inner for inner in (plain.sixtofour, *(plain.teredo or ())) if inner is not None)


def _host_of(url: str) -> str:
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or {" ", "\\"} & set(url):
        raise AddressRefused(f"A URL has printable ASCII letters without blanks, {LONGEST_URL} at most.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise AddressRefused("This is not a URL.") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise AddressRefused("A URL begins with https:// or http://, and names a host.")
    if "@" in parts.netloc:
        raise AddressRefused("A URL with a user or a password in it is not taken.")
    return host.rstrip(".")
