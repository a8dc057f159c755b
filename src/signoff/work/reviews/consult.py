"""Consultations: what a policy asks of other models and of a webhook about an answer, before the answer leaves.

A call of a model is a job of the user who saved the policy, with their rights and at their cost.
Its request and its answer are not stored: they repeat what another user sent and got, and would outlive their erasure.
It is never held and judged by no policy, so that no policy waits for itself.
"""

import asyncio
import re
from typing import Any

import msgspec
import structlog

from signoff.core.access import Caller
from signoff.core.api_paths import CHAT, MODERATIONS
from signoff.core.ask import Ask
from signoff.core.delivery import OutgoingMessage
from signoff.core.dialects.answer import answer_text
from signoff.core.job import INTERRUPTED, Job
from signoff.core.reviews.item import question_of
from signoff.core.reviews.policy import POLICY_DOOR, JobPolicy
from signoff.core.reviews.rules import GuardrailWebhook, ReviewPolicy
from signoff.core.webhook import webhook_headers
from signoff.core.wire import format_time
from signoff.errors import BadRequest, JobNotFound, SignoffError, Stale
from signoff.store import TransitionRequest
from signoff.work.admit import admit
from signoff.work.jobs.query import load_job
from signoff.work.services import Perform, Services

CONSULT_SECONDS = 120.0
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
log = structlog.get_logger()


async def judge_score(services: Services, policy: ReviewPolicy, job: Job, text: str, perform: Perform) -> float | None:
    """Return the score that the judge of `policy` gives to an answer; None if it gives none.

    The judge is a prompt with the placeholders `question` and `answer`, or a model, which gets both as JSON. Its score
    is the first number in its answer, or the member `score` of a JSON object.
    """
    content = msgspec.json.encode({"question": question_of(job), "answer": text}).decode()
    body = msgspec.json.encode({"model": policy.judge, "messages": [{"role": "user", "content": content}]})
    answer = await _ask(services, policy, policy.judge, CHAT, body, perform)
    return None if answer is None else score_in(answer_text(answer) or "")


def score_in(text: str) -> float | None:
    """Return the score in the words of a judge; None if there is none."""
    try:
        score = msgspec.json.decode(text, type=_Score).score
    except (ValueError, RecursionError):
        number = _NUMBER.search(text)
        return None if number is None else float(number.group())
    return float(score)


class _Score(msgspec.Struct):
    score: float


async def moderation_of(services: Services, policy: ReviewPolicy, text: str, perform: Perform) -> Any:
    """Return the result of the moderation model of `policy`: `flagged`, `categories` and `scores`; None without one."""
    body = msgspec.json.encode({"model": policy.moderation, "input": text})
    answer = await _ask(services, policy, policy.moderation, MODERATIONS, body, perform)
    if answer is None:
        return None
    try:
        results = msgspec.json.decode(answer, type=_Moderation).results
    except (ValueError, RecursionError):
        return None
    merged = _Result(flagged=any(result.flagged for result in results))
    for result in results:
        for name, flag in result.categories.items():
            merged.categories[name] = flag or merged.categories.get(name, False)
        for name, score in result.category_scores.items():
            merged.category_scores[name] = max(score, merged.category_scores.get(name, 0.0))
    return {"flagged": merged.flagged, "categories": merged.categories, "scores": merged.category_scores}


class _Result(msgspec.Struct):
    flagged: bool
    categories: dict[str, bool] = {}
    category_scores: dict[str, float] = {}


class _Moderation(msgspec.Struct):
    results: list[_Result]


async def webhook_answer(
    services: Services, webhook: GuardrailWebhook, policy: ReviewPolicy, job: Job, answer: bytes
) -> Any:
    """Return the JSON answer of a guardrail; None if it does not give one in time."""
    if services.adapters.guardrail is None:
        return None
    data = {
        "job_id": job.id,
        "policy": policy.name,
        "version": policy.version,
        "path": job.path,
        "target": job.target,
        "model": job.model,
        "request": _json_of(job.body),
        "answer": _json_of(answer),
    }
    now = services.clock()
    body = msgspec.json.encode({"type": "answer.judged", "timestamp": format_time(now), "data": data})
    message_id = f"{job.id}.{job.round}.{job.attempt}"
    headers = webhook_headers(message_id, now, body, services.rules.webhook_secrets)
    message = OutgoingMessage(address=webhook.url, headers=headers, body=body)
    try:
        return msgspec.json.decode(await services.adapters.guardrail().ask(message, seconds=webhook.timeout_seconds))
    except (SignoffError, ValueError, RecursionError) as error:
        log.warning("policy_webhook_failed", policy=policy.name, job_id=job.id, error=repr(error))
        return None


async def _ask(
    services: Services, policy: ReviewPolicy, target: str | None, path: str, body: bytes, perform: Perform
) -> bytes | None:
    """Return the answer of a prompt or model, asked on behalf of the user who saved `policy`; None if it fails."""
    author = Caller(user_id=policy.user_id, token_id=policy.token_id, role="user", email="")
    ask = Ask(door=POLICY_DOOR, caller=author, path=path, body=body, target=target, lane="now", cache="never")
    try:
        admitted = await admit(services, msgspec.structs.replace(ask, caller=await _author(services, author)))
        if admitted.pipeline_id is not None:
            raise BadRequest(f"{target!r} is a pipeline; a policy asks prompts and models only.")
        job = msgspec.structs.replace(admitted, body=b"null", policy=JobPolicy(), ruling=None, fingerprint=None)
        stored = await services.store.jobs.insert(
            job, actor=services.ids.actor, lease_seconds=services.rules.lease_seconds
        )
        async with asyncio.timeout(CONSULT_SECONDS):
            answer = await perform(services, msgspec.structs.replace(stored, body=admitted.body))
    except (SignoffError, TimeoutError) as error:
        log.warning("policy_consultation_failed", policy=policy.name, target=target, error=repr(error))
        return None
    ended = await load_job(services, stored.id)
    if not ended.is_terminal:  # it was postponed or is to be retried, and the policy waits no longer
        await _cancel(services, ended)
    return answer


async def _author(services: Services, author: Caller) -> Caller:
    """Return the user who saved the policy with their present role: an admin's policy may use prompts of others."""
    user, _ = await services.store.people.user_with_token(author.user_id, author.token_id)
    return author if user is None else msgspec.structs.replace(author, role=user.role, email=user.email)


async def _cancel(services: Services, job: Job) -> None:
    request = TransitionRequest(verb="cancel", actor=services.ids.actor, changes={"error": INTERRUPTED})
    try:
        await services.store.jobs.transition(job.id, request)
    except (Stale, JobNotFound):
        return


def _json_of(body: bytes) -> msgspec.Raw:
    return msgspec.Raw(body or b"null")
