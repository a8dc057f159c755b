"""Which addresses that a user gave this server may go to: public ones, and what the operator allows beside them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
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
_METADATA: tuple[Address, ...] = (IPv6Address("fd00:ec2::254"), IPv4Address("100.100.100.200"))
_METADATA_NAMES = {"metadata.google.internal", "metadata"}


class Reach:
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


def checked_host(url: str, reach: Reach) -> str:
    """The host of `url`. Raises AddressRefused: unusable, or literally an address that may not be reached."""
    host = _host_of(url)
    address = literal(host)
    if address is not None:
        check(host, address, reach)
    elif (host == "localhost" or host.endswith(".localhost")) and not reach.permits(host, IPv4Address("127.0.0.1")):
        raise AddressRefused(f"{host} is not a public address.")
    return host


def check_model_url(url: str) -> None:
    """Raises AddressRefused for a URL that no model can be at: models may be private, but are nobody's metadata."""
    host = _host_of(url)
    address = literal(host)
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped is not None and (mapped.is_link_local or mapped.is_multicast or mapped in _METADATA):
        raise AddressRefused(f"{host} is no address of a model.")
    if host.lower() in _METADATA_NAMES:
        raise AddressRefused(f"{host} is no address of a model.")


def check(host: str, address: Address, reach: Reach) -> None:
    """Raises AddressRefused unless `address`, which `host` stands for, may be connected to."""
    if not reach.permits(host, address):
        raise AddressRefused(f"{host} is not a public address; the operator can allow it (webhook_allow).")


def literal(host: str) -> Address | None:
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
