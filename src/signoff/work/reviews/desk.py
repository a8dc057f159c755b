"""Review: a reviewer's decision on a held answer, its draft, and its withdrawal."""

from collections.abc import Sequence
from typing import Any

import msgspec

from signoff.core.access import Caller
from signoff.core.dialects.edited_answer import check_edit, edited_answer, written_usage
from signoff.core.job import Decision, Draft, Edit, Event, Job, JobError, Verdict
from signoff.core.reviews.instruction import with_instruction
from signoff.core.reviews.strictness import deadline_of
from signoff.core.reviews.votes import votes_needed
from signoff.errors import Forbidden, Stale
from signoff.store import TransitionRequest
from signoff.work.inference.caching import store_answer
from signoff.work.reviews.ballot import cast_vote
from signoff.work.reviews.held import (
    check_current,
    check_not_own,
    check_undecided,
    load_held,
    without_absent_assignee,
)
from signoff.work.reviews.readmit import readmit
from signoff.work.services import Services

# Votes of others that may come between the look at a job and a vote on it.
MAX_VOTE_TRIES = 10


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
    instruction: str | None = None
    """Words to the model that is asked again (redo); None for none."""
    release_seconds: float | None = None
    """Time for which the verdict can be undone before it takes effect; None for `undo_seconds` of the policy."""
    bulk_id: str | None = None
    """Id of the bulk decision that this verdict is a part of; None for one by itself. It is refused if the answer has a
    draft, which nobody would look at."""


async def decide(services: Services, caller: Caller, job_id: str, request: VerdictRequest) -> Job:
    """Record the verdict, and return the job. The verdict takes effect once it can be undone no more.

    On an answer that needs several reviewers, the verdict is a vote, and the last one decides.

    Raises Forbidden, JobNotFound, what `readmit` raises for an edited request, BadRequest for an edited answer that the
    caller could not read, and Stale if the job is not in review, the round has changed, another reviewer has it open,
    or somebody has decided already.
    """
    job = await load_held(services, caller, job_id)
    await check_not_own(services, caller, job)
    review_round = job.round if request.round is None else request.round
    if request.bulk_id is not None and job.draft is not None:
        raise Stale(f"{job.draft.author or 'A reviewer'} saved a draft; decide on this answer alone.", job_id=job_id)
    decision = await _decision(services, caller, job, request)
    request = msgspec.structs.replace(request, round=review_round)
    for _ in range(MAX_VOTE_TRIES):
        if votes_needed(job) > 1:  # a vote is one on the job as it is now
            await check_current(services, job, review_round)
        transitions = await _transitions(services, caller, job, decision, request)
        try:
            decided = await services.store.jobs.transition(job_id, *transitions)
        except Stale:
            latest = await load_held(services, caller, job_id)
            await check_current(services, latest, review_round)  # for the name in its message
            if votes_needed(job) == 1 or latest.seq == job.seq:  # no vote of another came between
                raise
            job = latest
        else:
            store_answer(services, decided)
            if decided.status == "bot":
                services.adapters.broker.notify(decided.id, decided.priority)
            return decided
    raise Stale(
        f"Other votes changed the job in each of {MAX_VOTE_TRIES} tries; send the verdict again.", job_id=job_id
    )


async def _decision(services: Services, caller: Caller, job: Job, request: VerdictRequest) -> Decision:
    """Return the decision that `request` describes, once its edits are checked."""
    edit, new_target = request.edit, None
    match request.verdict:
        case "approve":
            check_edit(job, None if edit.response is None else edit.response.encode())
        case "redo":
            if request.instruction:
                body = job.body if edit.payload is None else edit.payload.encode()
                instructed = with_instruction(job.path, body, job.response, request.instruction)
                edit = msgspec.structs.replace(edit, payload=instructed.decode())
            if edit.payload is not None:
                new_target = await readmit(services, job, edit.payload.encode())
        case _:
            pass
    return Decision(
        verdict=request.verdict, reviewer=caller.email, reason=request.reason, edit=edit, new_target=new_target
    )


async def _transitions(
    services: Services, caller: Caller, job: Job, decision: Decision, request: VerdictRequest
) -> Sequence[TransitionRequest]:
    """Return the vote if one is needed, the decision if it completes the round, and its effect if that is immediate."""
    votes = list[TransitionRequest]()
    if votes_needed(job) > 1:
        vote, result = await cast_vote(services, caller, job, decision)
        if result is None:
            return [vote]
        votes, decision = [vote], result
    seconds = job.policy.undo_seconds if request.release_seconds is None else request.release_seconds
    transition = TransitionRequest(
        verb="decide",
        actor=caller.actor,
        round=request.round,
        reviewer=caller.email,
        changes={"decision": decision},
        after_seconds={"release_at": seconds},
        decision=decision,
        seq=None if request.bulk_id is None else job.seq,
        note={} if request.bulk_id is None else {"bulk_id": request.bulk_id},
    )
    immediate = [] if seconds > 0 else [verdict_transition(job, decision, caller.actor)]
    return [*votes, transition, *immediate]


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
    job = await load_held(services, caller, job_id)
    check_undecided(job)
    complete = with_draft(job, request)
    if complete.edit != request.edit and request.verdict != "reject":
        drafts = [event for event in await services.store.jobs.events(job_id) if event.verb == "draft"]
        if drafts and drafts[-1].actor != caller.actor:
            raise Stale("Another reviewer saved a draft; read it, and send what you sign off.", job_id=job_id)
    if votes_needed(job) > 1 and complete.edit == Edit() and request.verdict != "reject":
        _check_draft_is_there(caller, job, await services.store.jobs.events(job_id))
    return await decide(services, caller, job_id, complete)


def _check_draft_is_there(caller: Caller, job: Job, events: Sequence[Event]) -> None:
    """Raise Stale if another voter, whose draft is hidden from `caller`, has replaced the draft that `caller` saved."""
    if job.draft is not None:
        return
    is_saved = False
    for event in events:
        if event.verb in {"hold", "undo"}:
            is_saved = False
        is_saved |= (event.verb, event.actor) == ("draft", caller.actor)
    if is_saved:
        raise Stale("Your draft is not stored any more; send the edit with your verdict.", job_id=job.id)


async def decide_on_desk(
    services: Services, caller: Caller, job_id: str, request: VerdictRequest, *, uses_draft: bool = True
) -> Job:
    """Record the verdict, with the saved draft if `uses_draft`; it can be undone for the time of the desk.

    Raises what `decide_with_draft` raises.
    """
    request = msgspec.structs.replace(request, release_seconds=services.rules.release_after_seconds)
    if not uses_draft:
        return await decide(services, caller, job_id, request)
    return await decide_with_draft(services, caller, job_id, request)


async def undo_verdict(services: Services, caller: Caller, job_id: str, review_round: int | None = None) -> Job:
    """Withdraw the verdict of a round, None for the current one, that has not taken effect.

    The new round has the full time until a deadline that the old one had.

    Raises Forbidden, JobNotFound, Stale.
    """
    job = await load_held(services, caller, job_id)
    if caller.role != "admin" and job.decision is not None and job.decision.reviewer != caller.email:
        raise Forbidden(f"Only {job.decision.reviewer} or an admin may undo this verdict.")
    seconds = None if job.review_deadline is None else deadline_of(job.ruling, job.policy).seconds
    after = {} if seconds is None else {"review_deadline": seconds}
    review_round = job.round if review_round is None else review_round
    changes = await without_absent_assignee(services, job)
    request = TransitionRequest(
        verb="undo", actor=caller.actor, round=review_round, changes=changes, after_seconds=after
    )
    return await services.store.jobs.transition(job_id, request)


async def save_draft(
    services: Services, caller: Caller, job_id: str, edit: Edit, *, review_round: int | None = None
) -> Job:
    """Merge `edit` into the job's draft, and change nothing else. Raises Forbidden, JobNotFound, Stale."""
    job = await load_held(services, caller, job_id)
    return await services.store.jobs.transition(
        job_id,
        TransitionRequest(
            verb="draft",
            actor=caller.actor,
            round=job.round if review_round is None else review_round,
            reviewer=caller.email,
            changes={"draft": _merge(job.draft or Edit(), edit, caller.email)},
        ),
    )


async def release_verdict(services: Services, job: Job) -> Job:
    """Let the verdict on `job` take effect, once it can be undone no more. Raises JobNotFound, Stale."""
    if job.decision is None:
        raise Stale("There is no verdict.", job_id=job.id)
    transition = verdict_transition(job, job.decision, services.ids.actor)
    released = await services.store.jobs.transition(job.id, transition)
    store_answer(services, released)
    if released.status == "bot":
        services.adapters.broker.notify(released.id, released.priority)
    return released


def verdict_transition(job: Job, decision: Decision, actor: str) -> TransitionRequest:
    """Return the transition by which `decision` takes effect in the current round of `job`."""
    match decision.verdict:
        case "approve":
            return TransitionRequest(verb="approve", actor=actor, round=job.round, changes=_edited(job, decision.edit))
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


def _edited(job: Job, edit: Edit) -> dict[str, Any]:
    """Return the columns that an approval with `edit` changes; an answer that a person wrote has its tokens."""
    if edit.response is None:
        return {}
    answer = edited_answer(job, edit.response.encode())
    if job.response is not None:
        return {"response": answer}
    usage = written_usage(job, answer)
    tokens = job.completion_tokens + usage.completion_tokens
    return {"response": answer, "usage": usage, "completion_tokens": tokens}


def _merge(draft: Edit, edit: Edit, author: str) -> Draft:
    """Return `edit` as a draft, with the values of `draft` for its unchanged fields."""
    return Draft(
        author=author,
        payload=draft.payload if edit.payload is None else edit.payload,
        response=draft.response if edit.response is None else edit.response,
    )
