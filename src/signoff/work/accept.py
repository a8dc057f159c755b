"""Acceptance of stream messages: store each message as one job, however often the broker delivers it.

An invalid message becomes a job that has failed already, so its answer is delivered like any other.
"""

import contextlib

import msgspec

from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.content_coding import decode_content
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

CHARACTER_SETS = {"utf-8", "utf8"}
MAX_EXCERPT_BYTES = 16 * 1024
# The user id of a stream without a user; 0 is that of callers without a token.
NO_USER_ID = -1


async def stream_caller(services: Services, stream: Stream) -> Caller:
    """Return the caller whose limits and models apply to messages of `stream`.

    Raises Forbidden if its user is inactive.
    """
    if stream.user is None:
        return Caller(user_id=NO_USER_ID, token_id=0, role="user", email=f"stream:{stream.name}")
    caller = await services.caches.callers.by_email(stream.user)
    if caller is None:
        raise Forbidden(
            f"The stream {stream.name!r} runs as {stream.user}, who is not an active user; activate that user."
        )
    return caller


def decompressed(services: Services, message: IncomingMessage) -> IncomingMessage:
    """Return `message` with its body decompressed. Raises BadRequest, UnsupportedEncoding, TooLarge.

    A name of a character set, which some clients write there, is no compression.
    """
    if message.encoding is None:
        return message
    coding = "" if message.encoding.strip().lower() in CHARACTER_SETS else message.encoding
    body = decode_content(message.body, coding, services.rules.max_body_bytes)
    return msgspec.structs.replace(message, body=body, encoding=None)


async def accept(services: Services, ask: Ask, message: IncomingMessage, error: SignoffError | None = None) -> Job:
    """Store the job of `message`, and return it; a job that has failed if `error` is set or the message is invalid.

    A message that was delivered before returns its first job, whose answer is sent again if the job has ended. It is
    recognized by its content, its reply address, and its id; without an id, by its correlation id, and only if the
    broker may have delivered it before. A message with neither is always a new job, because the broker also marks
    messages as redelivered that no process has taken: a second answer is better than none.
    Raises retryable errors and server errors (status 500 and above), on which the broker should redeliver.
    """
    ask = msgspec.structs.replace(ask, client_id=_client_id(ask, message))
    if error is None and len(message.body) > services.rules.max_body_bytes:
        limit = services.rules.max_body_bytes
        error = TooLarge(f"The message must not be larger than {limit} bytes (setting `max_body_bytes`); send less.")
    new, verb = await _new_job(services, ask, message, error)
    job = await services.store.jobs.insert(new, actor=ask.caller.actor, verb=verb)
    if job.id == new.id:
        _notify(services, job)
        return job
    if not message.id and not message.is_redelivery:
        new = msgspec.structs.replace(new, client_id=None, fingerprint=None)
        job = await services.store.jobs.insert(new, actor=ask.caller.actor, verb=verb)
        _notify(services, job)
        return job
    await _resend_answer(services, job)
    return job


def _client_id(ask: Ask, message: IncomingMessage) -> str | None:
    """Return the id by which another delivery of `message` finds its job; None if nothing identifies the message."""
    if not message.id and not message.correlation_id:
        return None
    parts = [message.id or ""]
    if message.correlation_id is not None or message.reply_to is not None:
        parts += [message.correlation_id or "", message.reply_to or ""]
    return f"{ask.reply_to}:{fingerprint(*(part.encode(errors='surrogatepass') for part in parts), message.body)}"


async def _new_job(
    services: Services, ask: Ask, message: IncomingMessage, error: SignoffError | None
) -> tuple[Job, InitialVerb]:
    """Return the job of the message, and the verb with which it is stored."""
    if error is None:
        try:
            return await _admit_or_hit(services, ask)
        except SignoffError as failure:
            if failure.retryable or failure.status >= 500:
                raise
            error = failure
    return _refused_job(services, ask, message, error), "refuse"


async def _admit_or_hit(services: Services, ask: Ask) -> tuple[Job, InitialVerb]:
    job = await admit(services, ask)
    hit = await lookup_answer(services, ask, job)
    return (job, "submit") if hit is None else (hit, "hit")


def _refused_job(services: Services, ask: Ask, message: IncomingMessage, error: SignoffError) -> Job:
    job_id = services.ids.new_id()
    return Job(
        id=job_id,
        status="fail",
        door=ask.door,
        lane=ask.lane,
        user_id=ask.caller.user_id,
        token_id=ask.caller.token_id,
        target=_replace_nuls(ask.target or ""),
        model="",
        path=_replace_nuls(ask.path),
        body=_json_excerpt(message.body),
        error=job_error(error),
        metadata=ask.metadata,
        client_id=ask.client_id,
        deliver=delivery_targets(services, ask, job_id),
    )


def _json_excerpt(message: bytes) -> bytes:
    """Return the beginning of an invalid message as a JSON string."""
    return msgspec.json.encode(_replace_nuls(message[:MAX_EXCERPT_BYTES].decode(errors="replace")))


def _replace_nuls(text: str) -> str:
    return text.replace("\0", "\ufffd")


def _notify(services: Services, job: Job) -> None:
    if not job.is_terminal:
        services.adapters.broker.notify(job.id, job.priority)


async def _resend_answer(services: Services, job: Job) -> None:
    """Send the answer again, under its delivery id: the first one may have answered another delivery of the message."""
    for delivery in await services.store.deliveries.of_job(job.id):
        if delivery.kind == "topic" and delivery.state != "due":
            with contextlib.suppress(NotFound, Stale):  # a worker is sending it now
                await services.store.deliveries.redeliver(delivery.id)
