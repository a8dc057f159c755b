"""Faults of brokers are shown with their text, and never with a secret of the broker's URL."""

import pytest

from signoff.errors import Undelivered
from signoff.transports.faults import describe, described_faults


@pytest.mark.parametrize(
    ("error", "url", "expected"),
    [
        (ValueError("err_code=10052 can not change"), "nats://h", "ValueError: err_code=10052 can not change"),
        (OSError("cannot reach amqp://bob:other@host"), "nats://h", "OSError: cannot reach amqp://…@host"),
        (OSError("login ann:p%40ss failed"), "amqp://ann:p%40ss@h", "OSError: login … failed"),
        (OSError("p@ss is wrong"), "amqp://ann:p%40ss@h", "OSError: … is wrong"),
        (OSError("at nats://s3cret@h:1"), "nats://s3cret@h:1", "OSError: at …"),
        (OSError("token s3cret is wrong"), "nats://s3cret@h:1", "OSError: token … is wrong"),
        (OSError("?password=s3cret"), "amqp://h/?password=s3cret", "OSError: ?…"),
        (ExceptionGroup("g", [ValueError("one"), ValueError("two")]), "nats://h", "ValueError: one"),
        (TimeoutError(), "nats://h", "TimeoutError"),
        (ValueError("a\n\tb" + "x" * 1000), "nats://h", "ValueError: a b" + "x" * 297),
    ],
)
def test_a_fault_is_described_without_secrets(error: Exception, url: str, expected: str) -> None:
    assert describe(error, url) == expected


def test_an_error_of_a_library_becomes_one_that_may_be_shown() -> None:
    with pytest.raises(ConnectionError, match=r"^ValueError: text$"), described_faults("nats://h"):
        raise ValueError("text")


@pytest.mark.parametrize("error", [ConnectionError("ours"), Undelivered("refused")])
def test_an_error_of_ours_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, described_faults("nats://h"):
        raise error
    assert raised.value is error
