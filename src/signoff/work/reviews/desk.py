"""Review: a person looks at a held answer, and decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from signoff.core.access import Caller, may_review
from signoff.core.job import Decision, Edit, Job, JobError, Verdict
from signoff.errors import Forbidden, Stale
from signoff.store import TransitionRequest
from signoff.work.inference.caching import store_answer
from signoff.work.jobs.query import load_job
from signoff.work.services import Services

Peek = Literal["open", "leave"]
OPEN_SECONDS = 120.0


class VerdictRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a reviewer says of a job. `round` None means the one that the job is in."""

    verdict: Verdict
    reason: str | None = None
    edit: Edit = Edit()
    round: int | None = None


async def decide(services: Services, caller: Caller, job_id: str, opinion: VerdictRequest) -> Job:
    """The verdict is in, and takes effect at once unless it can be undone for a while.

    Raises Forbidden, JobNotFound, and Stale when the job is not in review, another reviewer has it open,
    or somebody decided before.
    """
    job = await _held(services, caller, job_id)
    decision = Decision(verdict=opinion.verdict, reviewer=caller.email, reason=opinion.reason, edit=opinion.edit)
    step = TransitionRequest(
        verb="decide",
        actor=caller.actor,
        round=job.round if opinion.round is None else opinion.round,
        reviewer=caller.email,
        changes={"decision": decision},
        after_seconds={"release_at": job.policy.undo_seconds},
        decision=decision,
    )
    at_once = [] if job.policy.undo_seconds > 0 else [verdict_transition(job, decision, caller.actor)]
    decided = await services.store.jobs.transition(job_id, step, *at_once)
    store_answer(services, decided)
    if decided.status == "bot":
        services.adapters.broker.notify(decided.id, decided.priority)
    return decided


async def undo_verdict(services: Services, caller: Caller, job_id: str) -> Job:
    """Withdraws a verdict that has not taken effect. Raises Forbidden, JobNotFound, Stale."""
    job = await _held(services, caller, job_id)
    if caller.role != "admin" and job.decision is not None and job.decision.reviewer != caller.email:
        raise Forbidden(f"Only {job.decision.reviewer} or an admin can undo this.")
    return await services.store.jobs.transition(
        job_id, TransitionRequest(verb="undo", actor=caller.actor, round=job.round)
    )


async def save_draft(services: Services, caller: Caller, job_id: str, edit: Edit) -> Job:
    """Keeps edits, and changes nothing else. Raises Forbidden, JobNotFound, Stale."""
    job = await _held(services, caller, job_id)
    changes = {"draft": _merged(job.draft or Edit(), edit)}
    return await services.store.jobs.transition(job_id, _step("draft", caller, job, changes=changes))


async def lock_for_review(services: Services, caller: Caller, job_id: str, peek: Peek) -> Job:
    """Opens a held job for `caller`, for two minutes at a time, or leaves it. Raises Forbidden, JobNotFound, Stale."""
    job = await _held(services, caller, job_id)
    if peek == "leave":
        return await services.store.jobs.transition(job_id, _step("leave", caller, job))
    step = _step("open", caller, job, changes={"review_lease": caller.email})
    return await services.store.jobs.transition(
        job_id, msgspec.structs.replace(step, after_seconds={"review_lease_until": OPEN_SECONDS})
    )


def verdict_transition(job: Job, decision: Decision, actor: str) -> TransitionRequest:
    """The move that makes `decision`, of the round that `job` is in, true."""
    match decision.verdict:
        case "approve":
            edited = decision.edit.response
            changes = {} if edited is None else {"response": edited.encode()}
            return TransitionRequest(verb="approve", actor=actor, round=job.round, changes=changes)
        case "redo":
            edited, again = decision.edit.payload, {"attempt": 0, "lane": "later"}
            note = {} if edited is None else {"body_before": msgspec.Raw(job.body)}
            # What is answered then is no longer what its caller has asked.
            other = {"cache": "bypass"} if job.cache == "miss" else {}
            changes = again if edited is None else again | other | {"body": edited.encode()}
            at_once = {"due_at": 0.0}
            return TransitionRequest(
                verb="redo", actor=actor, round=job.round, changes=changes, after_seconds=at_once, note=note
            )
        case "reject":
            reason = decision.reason or "A reviewer rejected the answer."
            error = JobError(code="rejected", message=reason, status=403)
            return TransitionRequest(verb="reject", actor=actor, round=job.round, changes={"error": error})


async def _held(services: Services, caller: Caller, job_id: str) -> Job:
    if not may_review(caller):
        raise Forbidden("Only reviewers and admins may review.")
    job = await load_job(services, job_id)
    if job.status != "human":
        winner = f"; {job.decision.reviewer} decided: {job.decision.verdict}" if job.decision else ""
        raise Stale(f"The job is {job.status}, not in review{winner}.", job_id=job_id)
    return job


def _merged(kept: Edit, edit: Edit) -> Edit:
    """`edit`, with what was kept where it says nothing."""
    return Edit(
        payload=kept.payload if edit.payload is None else edit.payload,
        response=kept.response if edit.response is None else edit.response,
    )


def _step(verb: str, caller: Caller, job: Job, changes: Mapping[str, object] | None = None) -> TransitionRequest:
    return TransitionRequest(
        verb=verb, actor=caller.actor, round=job.round, reviewer=caller.email, changes=changes or {}
    )
