"""Reading the headers of a request at the doors."""

from __future__ import annotations

from signoff.core.cache import CacheControl
from signoff.doors.http import cache_control_of, header, wait_seconds_of


def test_the_first_of_several_headers_of_one_name_counts() -> None:
    scope = {"headers": [(b"prefer", b"wait=2"), (b"accept", b"*/*"), (b"prefer", b"wait=3")]}
    assert (header(scope, b"prefer"), header(scope, b"cookie"), wait_seconds_of(scope)) == ("wait=2", None, 2)


def test_all_cache_control_headers_count() -> None:
    scope = {"headers": [(b"cache-control", b"max-age=9"), (b"cache-control", b"no-store")]}
    assert cache_control_of(scope) == CacheControl(no_store=True, max_age_seconds=9)
    assert cache_control_of({"headers": []}) == CacheControl()
