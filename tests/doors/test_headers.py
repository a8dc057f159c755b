"""How doors read the headers of a request."""

from __future__ import annotations

from signoff.core.cache import CacheControl
from signoff.doors.http import cache_control_of, header, wait_seconds_of


def test_of_headers_of_one_name_the_first_counts() -> None:
    scope = {"headers": [(b"prefer", b"wait=2"), (b"accept", b"*/*"), (b"prefer", b"wait=3")]}
    assert (header(scope, b"prefer"), header(scope, b"cookie"), wait_seconds_of(scope)) == ("wait=2", None, 2)


def test_all_headers_count_that_say_how_old_an_answer_may_be() -> None:
    scope = {"headers": [(b"cache-control", b"max-age=9"), (b"cache-control", b"no-store")]}
    assert cache_control_of(scope) == CacheControl(no_store=True, max_age_seconds=9)
    assert cache_control_of({"headers": []}) == CacheControl()
