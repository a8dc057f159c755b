"""Review: a reviewer's decision on a held answer, its draft and its lock."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from signoff.core.access import Caller, check_may_review
from signoff.core.dialects.edited_answer import check_edit, edited_answer
from signoff.core.job import Decision, Edit, Job, JobError, Verdict
from signoff.errors import Forbidden, Stale
from signoff.store import TransitionRequest
from signoff.work.inference.caching import store_answer
from signoff.work.jobs.query import load_job
from signoff.work.reviews.readmit import readmit
from signoff.work.services import Services

LockAction = Literal["open", "leave"]
LOCK_SECONDS = 120.0


class VerdictRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A reviewer's verdict on a held job."""

    verdict: Verdict
    """Approve, redo or reject."""
    reason: str | None = None
    """The reason, which the job's caller gets with a rejection."""
    edit: Edit = Edit()
    """Changes to the answer (approve) or to the request (redo)."""
    round: int | None = None
    """The round that the reviewer has seen; None for the current one."""


async def decide(services: Services, caller: Caller, job_id: str, request: VerdictRequest) -> Job:
    """Record the verdict, and return the job. The verdict takes effect after `undo_seconds` of the policy.

    Raises Forbidden, JobNotFound, what `readmit` raises for an edited request, BadRequest for an edited answer that the
    caller could not read, and Stale if the job is not in review, the round has changed, another reviewer has it open,
    or somebody has decided already.
    """
    job = await _load_held(services, caller, job_id)
    if request.verdict == "approve":
        check_edit(job, None if request.edit.response is None else request.edit.response.encode())
    edited = request.edit.payload if request.verdict == "redo" else None
    decision = Decision(
        verdict=request.verdict,
        reviewer=caller.email,
        reason=request.reason,
        edit=request.edit,
        new_target=None if edited is None else await readmit(services, job, edited.encode()),
    )
    transition = TransitionRequest(
        verb="decide",
        actor=caller.actor,
        round=job.round if request.round is None else request.round,
        reviewer=caller.email,
        changes={"decision": decision},
        after_seconds={"release_at": job.policy.undo_seconds},
        decision=decision,
    )
    immediate = [] if job.policy.undo_seconds > 0 else [verdict_transition(job, decision, caller.actor)]
    decided = await services.store.jobs.transition(job_id, transition, *immediate)
    store_answer(services, decided)
    if decided.status == "bot":
        services.adapters.broker.notify(decided.id, decided.priority)
    return decided


def with_draft(job: Job, request: VerdictRequest) -> VerdictRequest:
    """Return the verdict with the saved draft of what it sends, unless it has an edit of that itself.

    `job` is the job as the reviewer has seen it, with its draft.
    """
    draft, edit = job.draft or Edit(), request.edit
    match request.verdict:
        case "approve":
            edit = Edit(response=draft.response if edit.response is None else edit.response)
        case "redo":
            edit = Edit(payload=draft.payload if edit.payload is None else edit.payload)
        case "reject":
            edit = Edit()
    return msgspec.structs.replace(request, edit=edit)


async def decide_with_draft(services: Services, caller: Caller, job_id: str, request: VerdictRequest) -> Job:
    """Record the verdict with the saved draft of `caller`; see `decide`.

    Raises Stale also if somebody else saved the draft, as nothing is signed off unseen.
    """
    job = await _load_held(services, caller, job_id)
    complete = with_draft(job, request)
    if complete.edit != request.edit and request.verdict != "reject":
        drafts = [event for event in await services.store.jobs.events(job_id) if event.verb == "draft"]
        if drafts and drafts[-1].actor != caller.actor:
            raise Stale("Another reviewer saved a draft; read it, and send what you sign off.", job_id=job_id)
    return await decide(services, caller, job_id, complete)


async def undo_verdict(services: Services, caller: Caller, job_id: str) -> Job:
    """Withdraw a verdict that has not taken effect. Raises Forbidden, JobNotFound, Stale."""
    job = await _load_held(services, caller, job_id)
    if caller.role != "admin" and job.decision is not None and job.decision.reviewer != caller.email:
        raise Forbidden(f"Only {job.decision.reviewer} or an admin may undo this verdict.")
    request = TransitionRequest(verb="undo", actor=caller.actor, round=job.round)
    return await services.store.jobs.transition(job_id, request)


async def save_draft(services: Services, caller: Caller, job_id: str, edit: Edit) -> Job:
    """Merge `edit` into the job's draft, and change nothing else. Raises Forbidden, JobNotFound, Stale."""
    job = await _load_held(services, caller, job_id)
    changes = {"draft": _merge(job.draft or Edit(), edit)}
    return await services.store.jobs.transition(job_id, _transition("draft", caller, job, changes=changes))


async def lock_for_review(services: Services, caller: Caller, job_id: str, action: LockAction) -> Job:
    """Open a held job for `caller` for LOCK_SECONDS, or leave it; other reviewers cannot decide on an open job.

    Raises Forbidden, JobNotFound, Stale.
    """
    job = await _load_held(services, caller, job_id)
    if action == "leave":
        return await services.store.jobs.transition(job_id, _transition("leave", caller, job))
    request = _transition("open", caller, job, changes={"review_lease": caller.email})
    request = msgspec.structs.replace(request, after_seconds={"review_lease_until": LOCK_SECONDS})
    return await services.store.jobs.transition(job_id, request)


def verdict_transition(job: Job, decision: Decision, actor: str) -> TransitionRequest:
    """Return the transition by which `decision` takes effect in the current round of `job`."""
    match decision.verdict:
        case "approve":
            edited = decision.edit.response
            changes = {} if edited is None else {"response": edited_answer(job, edited.encode())}
            return TransitionRequest(verb="approve", actor=actor, round=job.round, changes=changes)
        case "redo":
            edited, new_target = decision.edit.payload, decision.new_target
            readmitted = {} if new_target is None else msgspec.structs.asdict(new_target)
            restart = {"attempt": 0, "lane": "later"} | readmitted
            note = {} if edited is None else {"body_before": msgspec.Raw(job.body)}
            # The answer to an edited request must not be cached for the request of the caller.
            bypass = {"cache": "bypass"} if job.cache == "miss" else {}
            changes = restart if edited is None else restart | bypass | {"body": edited.encode()}
            due = {"due_at": 0.0}
            return TransitionRequest(
                verb="redo", actor=actor, round=job.round, changes=changes, after_seconds=due, note=note
            )
        case "reject":
            reason = decision.reason or "A reviewer rejected the answer."
            error = JobError(code="rejected", message=reason, status=403)
            return TransitionRequest(verb="reject", actor=actor, round=job.round, changes={"error": error})


async def _load_held(services: Services, caller: Caller, job_id: str) -> Job:
    check_may_review(caller)
    job = await load_job(services, job_id)
    if job.status != "human":
        decision = f"; {job.decision.reviewer} decided: {job.decision.verdict}" if job.decision else ""
        raise Stale(f"The job is {job.status}, not in review{decision}.", job_id=job_id)
    return job


def _merge(draft: Edit, edit: Edit) -> Edit:
    """Return `edit`, with the values of `draft` for its unchanged fields."""
    return Edit(
        payload=draft.payload if edit.payload is None else edit.payload,
        response=draft.response if edit.response is None else edit.response,
    )


def _transition(verb: str, caller: Caller, job: Job, changes: Mapping[str, object] | None = None) -> TransitionRequest:
    return TransitionRequest(
        verb=verb, actor=caller.actor, round=job.round, reviewer=caller.email, changes=changes or {}
    )
