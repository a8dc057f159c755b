"""Limits of failed sign-ins."""

from __future__ import annotations

import pytest

from signoff.core.sign_in import SignInCount, denial_of, sign_in_limits, with_attempt, without_attempt
from signoff.core.times import SECOND_US


def test_the_wait_doubles_with_each_failure_up_to_a_maximum() -> None:
    limit, _ = sign_in_limits("ann@example.com", "203.0.113.9")
    count, waits, now = SignInCount(), list[float](), 1_000 * SECOND_US

    for _ in range(100):
        count = with_attempt(limit, count, now)
        denial = denial_of(limit, count, now)
        waits.append(0 if denial is None else denial.seconds)
        now = max(now, count.blocked_until)
        assert denial_of(limit, count, now) is None

    assert waits[:10] == [0, 0, 0, 0, 10, 20, 40, 80, 160, 320]
    assert {*waits[12:]} == {limit.max_wait_seconds}


def test_failures_are_forgotten_after_an_hour_without_an_attempt() -> None:
    limit, _ = sign_in_limits("ann@example.com", "203.0.113.9")
    count = SignInCount()
    for _ in range(7):
        count = with_attempt(limit, count, 0)

    assert with_attempt(limit, count, count.expires_at - 1).failures == 8
    assert with_attempt(limit, count, count.expires_at).failures == 1


def test_success_takes_back_its_own_attempt_only() -> None:
    _, limit = sign_in_limits("ann@example.com", "203.0.113.9")
    count = SignInCount(failures=limit.burst, expires_at=10**12)

    after = without_attempt(with_attempt(limit, count, 0))

    assert (after.failures, after.blocked_until) == (limit.burst, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:1:2::5", "2001:db8:1:2:ffff::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("fe80::1%eth0", "fe80::2"),
    ],
)
def test_addresses_of_one_client_share_a_limit(one: str, other: str) -> None:
    assert sign_in_limits("", one)[1] == sign_in_limits("", other)[1]


def test_other_networks_and_addresses_have_limits_of_their_own() -> None:
    clients = ["2001:db8:1:2::5", "2001:db8:1:3::5", "203.0.113.9", "203.0.113.10", ""]
    assert len({sign_in_limits("", client)[1].key for client in clients}) == len(clients)


def test_an_email_address_counts_in_any_case_and_is_not_readable_in_the_key() -> None:
    one, other = sign_in_limits("Ann@Example.com", "")[0], sign_in_limits("ann@example.com", "")[0]
    assert one == other
    assert "ann" not in one.key
    assert sign_in_limits("\ud800", "")[0].key
