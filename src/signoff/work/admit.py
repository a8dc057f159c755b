"""Admit: may this caller ask this, of which model, and who must look at the answer?"""

from __future__ import annotations

import re

import msgspec

from signoff.core.ask import Ask, path_for
from signoff.core.job import Job
from signoff.core.keys import fingerprint
from signoff.core.policy import policy_for
from signoff.errors import BadBody, BadRequest
from signoff.work.deliver import ends_told
from signoff.work.desk import Desk

MAX_KEY_LENGTH = 255
PRIORITIES = range(10)
# Upstreams are asked under their own base address: nobody climbs out of it.
PATH = re.compile(r"/v1(/[A-Za-z0-9_-]+)+|/predict")


async def admit(desk: Desk, ask: Ask) -> Job:
    """The job that `ask` would be, not written anywhere yet. Raises ModelNotFound, BadRequest, AddressRefused."""
    _check(ask)
    model = await desk.models.find(ask.target)
    rules, job_id = desk.rules, desk.new_id()
    policy = policy_for(model.review, ask.door_review, rules.policy)
    # A call that may be held may also be asked again by a client that lost its connection meanwhile.
    is_found_again = ask.own_id or ask.idempotency_key or (ask.lane == "now" and policy.may_hold)
    return Job(
        id=job_id,
        status="bot",
        door=ask.door,
        lane=ask.lane,
        user_id=ask.caller.user_id,
        token_id=ask.caller.token_id,
        target=ask.target or model.name,
        model=model.name,
        path=path_for(model, ask.path, ask.body),
        body=ask.body,
        metadata=ask.metadata,
        priority=ask.priority,
        policy=policy,
        own_id=ask.own_id,
        idempotency_key=ask.idempotency_key,
        fingerprint=_fingerprint(ask) if is_found_again else None,
        deliver=ends_told(desk, ask, ask.own_id or job_id),
        max_attempts=model.attempts or (rules.now_attempts if ask.lane == "now" else rules.later_attempts),
    )


def _check(ask: Ask) -> None:
    if ask.priority not in PRIORITIES:
        raise BadRequest("priority is a whole number from 0 to 9; 9 goes first.")
    if ask.idempotency_key is not None and not 0 < len(ask.idempotency_key) <= MAX_KEY_LENGTH:
        raise BadRequest(f"An idempotency key has 1 to {MAX_KEY_LENGTH} characters.")
    if ask.own_id is not None and not (ask.own_id.isprintable() and 0 < len(ask.own_id) <= MAX_KEY_LENGTH):
        raise BadRequest(f"A job id has 1 to {MAX_KEY_LENGTH} printable characters.")
    if PATH.fullmatch(ask.path) is None:
        raise BadRequest("path is /predict, or one of the OpenAI API, such as /v1/chat/completions.")
    try:
        ask.body.decode()
        msgspec.json.decode(ask.body, type=msgspec.Raw)
    except (ValueError, RecursionError) as error:
        raise BadBody(f"The body is not valid JSON: {error}") from None


def _fingerprint(ask: Ask) -> str:
    told = "" if ask.deliver is None else ask.deliver.url
    return fingerprint(ask.path.encode(), (ask.target or "").encode(), told.encode(), ask.body)
