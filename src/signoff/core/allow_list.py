"""Rules for the addresses that this server may connect to: webhooks at public ones, and models nearly anywhere."""

import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol
from urllib.parse import urlsplit

from signoff.errors import AddressRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_LENGTH = 2048
# RFC 4291: global unicast. Addresses that carry an IPv4 address (mapped, translated by NAT64) are outside of it, except
# for 6to4. The registries of older Python versions lack 3fff::/20 (RFC 9637) and 192.88.99.0/24 (RFC 7526).
_UNICAST_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC: tuple[Network, ...] = (IPv6Network("2002::/16"), IPv6Network("3fff::/20"), IPv4Network("192.88.99.0/24"))
# Metadata services of cloud providers that are outside of the link-local range; they hand out credentials.
_METADATA: tuple[Address, ...] = (
    IPv6Address("fd00:ec2::254"),
    IPv6Address("fd20:ce::254"),
    IPv4Address("100.100.100.200"),
    IPv4Address("168.63.129.16"),
    IPv4Address("192.0.0.192"),
)
# Networks whose addresses hold an IPv4 address in their last 32 bits.
_IPV4_SUFFIX_NETWORKS = tuple(
    IPv6Network(text) for text in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_METADATA_NAMES = {"metadata.google.internal", "metadata"}


class AddressRule(Protocol):
    """A rule for the addresses that may be connected to."""

    def permits(self, host: str, address: Address) -> bool:
        """Return True if `address`, to which the name or literal `host` resolved, may be connected to."""
        ...

    def refusal(self, host: str) -> str:
        """Return the error message for a `host` that is not permitted: one sentence with a remedy."""
        ...


class AllowList:
    """A rule that permits public addresses and an allow-list of names, addresses and networks (`10.1.0.0/16`)."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        hosts, networks = set[str](), list[Network]()
        for text in allowed:
            try:
                networks.append(ip_network(text, strict=False))
            except ValueError:
                hosts.add(text.lower())
        self._hosts, self._networks = frozenset(hosts), tuple(networks)

    def permits(self, host: str, address: Address) -> bool:
        """See `AddressRule`."""
        allowed = any(address in network for network in self._networks if network.version == address.version)
        return allowed or host.lower() in self._hosts or is_public(address)

    def has_name(self, host: str) -> bool:
        """Return True if the list has the name `host`, so that it may be reached whatever its address is."""
        return host.lower() in self._hosts

    def refusal(self, host: str) -> str:
        """See `AddressRule`."""
        return f"{host} is not at a public address; the operator can allow it with the setting `webhook_allow`."


class ModelAddressRule:
    """A rule that permits all addresses, private ones too, except for link-local, multicast and metadata addresses.

    An IPv6 address that carries an IPv4 address (mapped, translated, tunnelled) must pass with both.
    """

    def permits(self, host: str, address: Address) -> bool:
        """See `AddressRule`."""
        return host.lower() not in _METADATA_NAMES and not any(
            _is_forbidden_for_models(each) for each in _embedded_addresses(address)
        )

    def refusal(self, host: str) -> str:
        """See `AddressRule`."""
        return f"{host} is a link-local, multicast or metadata address; a model needs another one."


MODEL_ADDRESSES = ModelAddressRule()


def checked_host(url: str, rule: AddressRule) -> str:
    """Return the host of `url`, without resolving it.

    Raises:
        AddressRefused: `url` is not an `http` or `https` URL, or its host is a literal address that `rule` forbids.
    """
    host = _host_of(url)
    is_localhost = host == "localhost" or host.endswith(".localhost")
    address = IPv4Address("127.0.0.1") if is_localhost else parse_literal(host)
    if address is not None and not rule.permits(host, address):
        raise AddressRefused(rule.refusal(host))
    return host


def check_model_url(url: str) -> None:
    """Raise AddressRefused for a URL that no model may have, as far as can be seen without resolving its host."""
    host = checked_host(url, MODEL_ADDRESSES)
    if host.lower() in _METADATA_NAMES:
        raise AddressRefused(MODEL_ADDRESSES.refusal(host))


def parse_literal(host: str) -> Address | None:
    """Parse an address in any notation that resolvers accept (`127.1`, `0x7f000001`); return None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def is_public(address: Address) -> bool:
    """Return True if `address` is a global unicast address of the internet, and no metadata service."""
    if address in _METADATA:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    if isinstance(address, IPv6Address) and address not in _UNICAST_V6:
        return False
    return not any(address in network for network in _NOT_PUBLIC if network.version == address.version)


def _is_forbidden_for_models(address: Address) -> bool:
    return address.is_link_local or address.is_multicast or address in _METADATA


def _embedded_addresses(address: Address) -> Iterator[Address]:
    """Yield the address and those it carries: RFC 4291 (mapped, compatible), 6052, 8215 (NAT64), 2765, 3056, 4380."""
    if isinstance(address, IPv4Address):
        yield address
        return
    plain = IPv6Address(int(address))  # without a zone
    yield plain
    if any(plain in network for network in _IPV4_SUFFIX_NETWORKS):
        yield IPv4Address(int(plain) & 0xFFFF_FFFF)
    yield from (inner for inner in (plain.sixtofour, *(plain.teredo or ())) if inner is not None)


def _host_of(url: str) -> str:
    if len(url) > MAX_URL_LENGTH or not url.isascii() or not url.isprintable() or {" ", "\\"} & set(url):
        raise AddressRefused(
            f"The URL must be 1 to {MAX_URL_LENGTH} printable ASCII characters without blanks and backslashes."
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise AddressRefused("The URL cannot be parsed; write it as https://host[:port]/path.") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise AddressRefused("The URL must begin with https:// or http:// and name a host.")
    if "@" in parts.netloc:
        raise AddressRefused("The URL must not contain a user name or a password; remove everything up to the @.")
    return host.rstrip(".")
