"""Accept: a message of a stream is a job, durable, and the same one however often the message comes.

What cannot be asked is a job that has ended at once, so that its answer is a delivery like any other.
"""

from __future__ import annotations

import contextlib

import msgspec

from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.fingerprint import fingerprint
from signoff.core.job import Job
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Forbidden, NotFound, SignoffError, Stale, TooLarge
from signoff.store import InitialVerb
from signoff.work.admit import admit
from signoff.work.inference.caching import lookup_answer
from signoff.work.inference.settle import job_error
from signoff.work.jobs.deliver import delivery_targets
from signoff.work.services import Services

KEPT_OF_REFUSED = 16 * 1024
# No user, and not callers without a token either, who are 0.
NOBODY = -1


async def stream_caller(services: Services, stream: Stream) -> Caller:
    """Whose limits and models apply to the stream's messages. Raises Forbidden where that user is gone."""
    if stream.user is None:
        return Caller(user_id=NOBODY, token_id=0, role="user", email=f"stream:{stream.name}")
    caller = await services.caches.callers.by_email(stream.user)
    if caller is None:
        raise Forbidden(f"The stream {stream.name} is listened to as {stream.user}, who is no active user.")
    return caller


async def accept(services: Services, ask: Ask, message: IncomingMessage, error: SignoffError | None = None) -> Job:
    """The message's job, committed; one that has failed if there is an `error`, or if it cannot be admitted.

    A message that came before joins its job, and is answered again if that has ended. One without an id that comes
    for the first time joins nothing, even if it says what another one said.
    """
    client_id = f"{ask.reply_to}:{fingerprint((message.id or '').encode(), message.body)}"
    ask = msgspec.structs.replace(ask, client_id=client_id)
    if error is None and len(message.body) > services.rules.max_body_bytes:
        error = TooLarge(f"The message is larger than {services.rules.max_body_bytes} bytes.")
    asked, verb = await _job(services, ask, message, error)
    job = await services.store.jobs.insert(asked, actor=ask.caller.actor, verb=verb)
    if job.id == asked.id:
        _notify(services, job)
        return job
    if message.id is None and not message.is_redelivery:
        asked = msgspec.structs.replace(asked, client_id=None, fingerprint=None)
        job = await services.store.jobs.insert(asked, actor=ask.caller.actor, verb=verb)
        _notify(services, job)
        return job
    await _answer_again(services, job)
    return job


async def _job(
    services: Services, ask: Ask, message: IncomingMessage, error: SignoffError | None
) -> tuple[Job, InitialVerb]:
    """The job that the message is to be, and how it begins, or ends at once."""
    if error is None:
        try:
            return await _admitted(services, ask)
        except SignoffError as failure:
            if failure.retryable or failure.status >= 500:
                raise
            error = failure
    return _refused(services, ask, message, error), "refuse"


async def _admitted(services: Services, ask: Ask) -> tuple[Job, InitialVerb]:
    asked = await admit(services, ask)
    hit = await lookup_answer(services, ask, asked)
    return (asked, "submit") if hit is None else (hit, "hit")


def _refused(services: Services, ask: Ask, message: IncomingMessage, error: SignoffError) -> Job:
    job_id = services.ids.new_id()
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
        body=_excerpt(message.body),
        error=job_error(error),
        metadata=ask.metadata,
        client_id=ask.client_id,
        deliver=delivery_targets(services, ask, ask.client_id or job_id),
    )


def _excerpt(message: bytes) -> bytes:
    """What is kept of a message that cannot be asked, as JSON: its beginning, as a text."""
    return msgspec.json.encode(_without_zeros(message[:KEPT_OF_REFUSED].decode(errors="replace")))


def _without_zeros(text: str) -> str:
    return text.replace("\0", "\ufffd")


def _notify(services: Services, job: Job) -> None:
    if not job.is_terminal:
        services.adapters.broker.notify(job.id, job.priority)


async def _answer_again(services: Services, job: Job) -> None:
    """Sends the answer once more, under its id: the first one may not have been for this message."""
    sent = [
        told for told in await services.store.deliveries.of_job(job.id) if told.kind == "topic" and told.state != "due"
    ]
    for delivery in sent:
        with contextlib.suppress(NotFound, Stale):  # it is being sent
            await services.store.deliveries.resend(delivery.id)
