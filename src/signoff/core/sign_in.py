"""Limits of failed sign-ins by e-mail address and by client, and the pages to which a sign-in may lead.

The limits keep attackers from finding a password by trying many.
An attempt counts as failed from its start, so that concurrent attempts cannot exceed a limit; success takes it back.
"""

import hashlib
import re
from ipaddress import IPv6Address, ip_address
from typing import Literal

import msgspec

from signoff.core.times import SECOND_US

FORGET_SECONDS = 3600.0
FIRST_WAIT_SECONDS = 10.0
# A client with an IPv6 address usually has a network of this size to itself.
IPV6_CLIENT_BITS = 64

# Addresses of pages to which a sign-in may lead, below the mount: never another server.
NEXT_PATH = re.compile(r"/dashboard/[\w.~!$&'()*+,;=:@%/?-]*", re.ASCII)
MAX_NEXT_LENGTH = 2000

LimitedBy = Literal["email", "client"]


class SignInLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Limit of the failed sign-ins of one e-mail address or one client."""

    by: LimitedBy
    """The subject of the limit."""
    key: str
    """Name of the counter in the store, without the address itself if it is an e-mail address."""
    burst: int
    """Number of failures after which an attempt must wait FIRST_WAIT_SECONDS; each further failure doubles the wait."""
    max_wait_seconds: float
    """Longest wait."""


class SignInCount(msgspec.Struct, frozen=True, kw_only=True):
    """Recent failed sign-ins of one e-mail address or one client."""

    failures: int = 0
    """Number of failed attempts, with those that have not ended."""
    blocked_until: int = 0
    """Time before which every attempt is refused, in microseconds since 1970."""
    expires_at: int = 0
    """Time at which the failures are forgotten, in microseconds since 1970."""


class SignInDenial(msgspec.Struct, frozen=True, kw_only=True):
    """Refusal of an attempt before its password is looked at."""

    by: LimitedBy
    """The limit that refuses it."""
    seconds: float
    """Time until another attempt is allowed."""


def sign_in_limits(email: str, client: str) -> tuple[SignInLimit, SignInLimit]:
    """Return the limit of an e-mail address, which need not belong to a user, and that of a client's address.

    The limit of a client is wider, because many people can be behind one address.
    """
    hidden = hashlib.sha256(email.lower().encode(errors="replace")).hexdigest()
    return (
        SignInLimit(by="email", key=f"email:{hidden}", burst=5, max_wait_seconds=900),
        SignInLimit(by="client", key=f"client:{_network(client)}", burst=20, max_wait_seconds=300),
    )


def denial_of(limit: SignInLimit, count: SignInCount, now: int) -> SignInDenial | None:
    """Return the denial of an attempt at the time `now`, or None if it is allowed."""
    if now >= count.blocked_until:
        return None
    return SignInDenial(by=limit.by, seconds=(count.blocked_until - now) / SECOND_US)


def with_attempt(limit: SignInLimit, count: SignInCount, now: int) -> SignInCount:
    """Return the count after an attempt that begins at the time `now`."""
    failures = 1 if count.expires_at <= now else count.failures + 1
    wait_us = 0
    if failures >= limit.burst:
        doublings = min(failures - limit.burst, 32)
        wait_us = round(min(FIRST_WAIT_SECONDS * 2**doublings, limit.max_wait_seconds) * SECOND_US)
    expires_at = now + wait_us + round(FORGET_SECONDS * SECOND_US)
    return SignInCount(failures=failures, blocked_until=now + wait_us, expires_at=expires_at)


def without_attempt(count: SignInCount) -> SignInCount:
    """Return the count once an attempt has succeeded."""
    return msgspec.structs.replace(count, failures=max(0, count.failures - 1), blocked_until=0)


def checked_next(path: str | None) -> str:
    r"""Return a path to which a sign-in may lead: `path` if it is one of a page, else the start page.

    >>> checked_next("/dashboard/jobs?status=human"), checked_next("//evil.example"), checked_next("/dashboard/\\x")
    ('/dashboard/jobs?status=human', '/', '/')
    """
    is_page = path is not None and len(path) <= MAX_NEXT_LENGTH and NEXT_PATH.fullmatch(path) is not None
    return path if is_page and path is not None else "/"


def _network(client: str) -> str:
    """Return the address of a client, or the first half of an IPv6 address."""
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Address(int(address) >> IPV6_CLIENT_BITS << IPV6_CLIENT_BITS))
