"""Accept: a message of a stream is a job, durable, and the same one however often the message comes.

What cannot be asked is a job that has ended at once, so that its answer is a delivery like any other.
"""

from __future__ import annotations

import contextlib

import msgspec

from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.job import Job
from signoff.core.keys import fingerprint
from signoff.core.stream import Arrived, Stream
from signoff.errors import Forbidden, NotFound, SignoffError, Stale, TooLarge
from signoff.store import NewVerb
from signoff.work.admit import admit
from signoff.work.inference.caching import recalled
from signoff.work.inference.settle import error_of
from signoff.work.jobs.deliver import ends_told
from signoff.work.services import Desk

KEPT_OF_REFUSED = 16 * 1024
# No user, and not callers without a token either, who are 0.
NOBODY = -1


async def stream_caller(desk: Desk, stream: Stream) -> Caller:
    """Whose limits and models apply to the stream's messages. Raises Forbidden where that user is gone."""
    if stream.user is None:
        return Caller(user_id=NOBODY, token_id=0, role="user", email=f"stream:{stream.name}")
    caller = await desk.callers.named(stream.user)
    if caller is None:
        raise Forbidden(f"The stream {stream.name} is listened to as {stream.user}, who is no active user.")
    return caller


async def accept(desk: Desk, ask: Ask, arrived: Arrived, flaw: SignoffError | None = None) -> Job:
    """The message's job, committed; one that has failed if there is a `flaw`, or if it cannot be admitted.

    A message that came before joins its job, and is answered again if that has ended. One without an id that comes
    for the first time joins nothing, even if it says what another one said.
    """
    own_id = f"{ask.reply_to}:{fingerprint((arrived.id or '').encode(), arrived.body)}"
    ask = msgspec.structs.replace(ask, own_id=own_id)
    if flaw is None and len(arrived.body) > desk.rules.max_body_bytes:
        flaw = TooLarge(f"The message is larger than {desk.rules.max_body_bytes} bytes.")
    asked, verb = await _job(desk, ask, arrived, flaw)
    job = await desk.store.jobs.insert(asked, actor=ask.caller.actor, verb=verb)
    if job.id == asked.id:
        _ring(desk, job)
        return job
    if arrived.id is None and not arrived.again:
        asked = msgspec.structs.replace(asked, own_id=None, fingerprint=None)
        job = await desk.store.jobs.insert(asked, actor=ask.caller.actor, verb=verb)
        _ring(desk, job)
        return job
    await _answer_again(desk, job)
    return job


async def _job(desk: Desk, ask: Ask, arrived: Arrived, flaw: SignoffError | None) -> tuple[Job, NewVerb]:
    """The job that the message is to be, and how it begins, or ends at once."""
    if flaw is None:
        try:
            return await _admitted(desk, ask)
        except SignoffError as error:
            if error.retryable or error.status >= 500:
                raise
            flaw = error
    return _refused(desk, ask, arrived, flaw), "refuse"


async def _admitted(desk: Desk, ask: Ask) -> tuple[Job, NewVerb]:
    asked = await admit(desk, ask)
    hit = await recalled(desk, ask, asked)
    return (asked, "submit") if hit is None else (hit, "hit")


def _refused(desk: Desk, ask: Ask, arrived: Arrived, flaw: SignoffError) -> Job:
    job_id = desk.new_id()
    return Job(
        id=job_id,
        status="fail",
        door=ask.door,
        lane=ask.lane,
        user_id=ask.caller.user_id,
        token_id=ask.caller.token_id,
        target=_without_zeros(ask.target or ""),
        model="",
        path=_without_zeros(ask.path),
        body=_kept(arrived.body),
        error=error_of(flaw),
        metadata=ask.metadata,
        own_id=ask.own_id,
        deliver=ends_told(desk, ask, ask.own_id or job_id),
    )


def _kept(message: bytes) -> bytes:
    """What is kept of a message that cannot be asked, as JSON: its beginning, as a text."""
    return msgspec.json.encode(_without_zeros(message[:KEPT_OF_REFUSED].decode(errors="replace")))


def _without_zeros(text: str) -> str:
    return text.replace("\0", "\ufffd")


def _ring(desk: Desk, job: Job) -> None:
    if not job.is_terminal:
        desk.broker.ring(job.id, job.priority)


async def _answer_again(desk: Desk, job: Job) -> None:
    """Sends the answer once more, under its id: the first one may not have been for this message."""
    sent = [told for told in await desk.store.deliveries.of_job(job.id) if told.kind == "topic" and told.state != "due"]
    for delivery in sent:
        with contextlib.suppress(NotFound, Stale):  # it is being sent
            await desk.store.deliveries.resend(delivery.id)
