"""Faults of brokers are shown with the server and their text, and never with a secret of the broker's URL."""

import asyncio

import pytest
from aio_pika.exceptions import AMQPConnectionError, InvalidFrameError, ProbableAuthenticationError

from signoff.core.stream import TRANSPORTS
from signoff.errors import Undelivered
from signoff.infra.broker_faults import describe_fault, described_faults


@pytest.mark.parametrize(
    ("error", "url", "expected"),
    [
        (ValueError("err_code=10052 can not change"), "nats://h", "h: ValueError: err_code=10052 can not change"),
        (OSError("cannot reach amqp://bob:other@host"), "nats://h", "h: OSError: cannot reach amqp://…@host"),
        (OSError("login ann:p%40ss failed"), "nats://ann:p%40ss@h", "h: OSError: login … failed"),
        (OSError("p@ss is wrong"), "nats://ann:p%40ss@h", "h: OSError: … is wrong"),
        (OSError("at nats://s3cret@h:1"), "nats://s3cret@h:1", "h:1: OSError: at …"),
        (OSError("token s3cret is wrong"), "nats://s3cret@h:1", "h:1: OSError: token … is wrong"),
        (OSError("?password=s3cret"), "amqp://h/?password=s3cret", "h:5672: OSError: ?…"),
        (ExceptionGroup("g", [ValueError("one"), ValueError("two")]), "nats://h", "h: ValueError: one"),
        (OSError("OSError: none of them"), "kafka://a:1,b:2", "a:1,b:2: OSError: none of them"),
        (ValueError("at"), "nats://s3cret/@h", "The server: ValueError: at"),
        (ValueError("a\n\tb" + "x" * 1000), "nats://h", "h: ValueError: a b" + "x" * 297),
        (AMQPConnectionError("[Errno 111] s3cret"), "amqp://s3cret@h", "h:5672 cannot be reached: [Errno 111] …"),
        (
            ProbableAuthenticationError("s3cret"),
            "amqp://Zo%C3%AB:s3cret@h:1/",
            "h:1 refuses the login 'Zoë': check the user and the password",
        ),
        (
            InvalidFrameError(f"Expected Connection.OpenOk, got {object()}"),
            "amqps://ann:ann@h/a%2Fb",
            "h:5671 refuses the virtual host 'a/b': check that it exists, and that 'ann' may use it",
        ),
    ],
)
def test_a_fault_is_described_without_secrets(error: Exception, url: str, expected: str) -> None:
    assert describe_fault(error, url) == expected


@pytest.mark.parametrize("scheme", TRANSPORTS)
def test_a_fault_has_the_same_text_each_time_and_names_the_server(scheme: str) -> None:
    url = f"{scheme}://ann:s3cret@host:7/"
    texts = [
        [describe_fault(error, url) for error in (OSError(str(object())), TimeoutError(), ConnectionResetError())]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert texts[0] == [
        "host:7: OSError: <object object>",
        "host:7 did not answer in time: check the address, and that this host can reach it",
        "host:7: ConnectionResetError",
    ]


def test_an_error_of_a_library_becomes_one_that_may_be_shown() -> None:
    with pytest.raises(ConnectionError, match=r"^h: ValueError: text$"), described_faults("nats://h"):
        raise ValueError("text")


@pytest.mark.parametrize("error", [ConnectionError("ours"), Undelivered("refused")])
def test_an_error_of_ours_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, described_faults("nats://h"):
        raise error
    assert raised.value is error


@pytest.mark.anyio
async def test_a_cancellation_by_a_library_is_a_lost_connection_and_one_by_us_is_none() -> None:
    confirmation = asyncio.get_running_loop().create_future()
    confirmation.cancel()
    with pytest.raises(ConnectionError, match=r"^h: the connection was lost$"), described_faults("nats://h"):
        await confirmation

    async def wait() -> None:
        with described_faults("nats://h"):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
