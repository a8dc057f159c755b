"""Recognition of stream messages that are delivered again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from signoff.core.filters import JobFilter
from signoff.core.fingerprint import fingerprint
from signoff.core.job import Job
from signoff.core.stream import IncomingMessage, Stream
from signoff.doors.topics import accept_message
from support.live_server import live

pytestmark = pytest.mark.anyio
BODY = b'{"body": {"model": "echo", "prompt": "alike"}}'
STREAM = Stream(name="s", scheme="amqp", host="h", sealed=b"", requests="requests", responses="responses")
ANNS = IncomingMessage(BODY, correlation_id="1", reply_to="ann")
SECOND = IncomingMessage(BODY, correlation_id="2", reply_to="ann")
BOBS = IncomingMessage(BODY, correlation_id="1", reply_to="bob")


def again(message: IncomingMessage) -> IncomingMessage:
    """Return `message` as a broker delivers it after a lost connection."""
    return IncomingMessage(
        message.body,
        message.id,
        is_redelivery=message.id is None,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
    )


async def jobs_of(tmp_path: Path, messages: Sequence[IncomingMessage]) -> Sequence[Job]:
    """Accept the messages one after the other, and return the jobs that they have made."""
    async with live(tmp_path) as server:
        for message in messages:
            await accept_message(server.services, STREAM, message)
        return await server.services.store.jobs.list(JobFilter())


def replies(jobs: Sequence[Job]) -> list[tuple[str | None, str | None]]:
    """Return where the answers of the jobs go to, in order."""
    targets = [target.reply for job in jobs for target in job.deliver]
    return sorted((reply.topic, reply.correlation_id) for reply in targets)


@pytest.mark.parametrize("message_id", [None, "mine"])
async def test_an_equal_message_with_another_reply_address_is_another_job(
    tmp_path: Path, message_id: str | None
) -> None:
    messages = [
        IncomingMessage(BODY, message_id, correlation_id=each.correlation_id, reply_to=each.reply_to)
        for each in (ANNS, SECOND, BOBS)
    ]
    jobs = await jobs_of(tmp_path, [messages[0], *map(again, messages[1:])])
    assert replies(jobs) == [("ann", "1"), ("ann", "2"), ("bob", "1")]


async def test_a_redelivery_with_the_same_reply_address_is_the_same_job(tmp_path: Path) -> None:
    messages = [ANNS, BOBS, IncomingMessage(BODY, "an id"), IncomingMessage(BODY, correlation_id="alone")]
    assert len(await jobs_of(tmp_path, [*messages, *map(again, messages)])) == 4


@pytest.mark.parametrize("reply_to", [None, "ann"])
async def test_a_redelivery_without_any_id_is_a_job_of_its_own(tmp_path: Path, reply_to: str | None) -> None:
    # the broker may not have passed it on before, and then an equal message would lose its answer
    message = IncomingMessage(BODY, reply_to=reply_to)
    assert len(await jobs_of(tmp_path, [message, again(message), again(message)])) == 3


async def test_a_job_of_an_earlier_version_is_found_by_the_id_of_its_message(tmp_path: Path) -> None:
    [job] = await jobs_of(tmp_path, [IncomingMessage(BODY, "an id")])
    assert job.client_id == f"s:{fingerprint(b'an id', BODY)}"
