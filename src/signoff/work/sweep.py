"""Sweeping: make the transitions that time brings about.

Any number of processes may sweep at once, because every transition is guarded.
"""

import asyncio

import structlog

from signoff.core.job import INTERRUPTED, Decision, Job, JobError
from signoff.core.reviews.marks import needs_single_decision
from signoff.core.reviews.policy import Escalation
from signoff.core.reviews.strictness import deadline_of
from signoff.errors import JobNotFound, Overloaded, Stale
from signoff.infra.tasks import repeat
from signoff.store import TransitionRequest
from signoff.work.admin.erasure import continue_erasures
from signoff.work.batches.files import collect_files, purge_partial_files
from signoff.work.inference.caching import store_answer
from signoff.work.reviews.desk import verdict_transition
from signoff.work.services import Services

BATCH_SIZE = 100
PURGE_BATCH_SIZE = 500
ERASED_PAGES = 20
PURGE_PAUSE_SECONDS = 0.05
CLEAN_SECONDS = 3600.0
log = structlog.get_logger()


async def run_sweeper(services: Services) -> None:
    """Sweep every `sweep_seconds`, until cancelled."""
    await repeat(lambda: sweep(services), seconds=services.rules.sweep_seconds, failure="sweep_failed")


async def run_file_cleaner(services: Services) -> None:
    """Delete what killed uploads have left, at the start and every hour, until cancelled."""
    await repeat(lambda: purge_partial_files(services), seconds=CLEAN_SECONDS, failure="file_cleaning_failed")


async def run_file_collector(services: Services) -> None:
    """Delete the blobs of deleted files every `sweep_seconds`, until cancelled.

    It is no step of a sweep, because verdicts and deadlines must not wait for a blob store that does not answer.
    """
    skipped = set[str]()
    seconds = services.rules.sweep_seconds
    await repeat(lambda: collect_files(services, skipped), seconds=seconds, failure="file_collection_failed")


async def sweep(services: Services) -> None:
    """Sweep once: rescue lapsed leases, apply verdicts, expire reviews, wake runs, purge old rows, erase users.

    A step that fails is logged, and the others go on. Raises Overloaded if the database does not answer.
    """
    for step in (_rescue_lapsed, _apply_verdicts, _expire_reviews, _wake_runs, _purge, _erase):
        try:
            await step(services)
        except Overloaded:
            raise
        except Exception:
            log.exception("sweep_step_failed", step=step.__name__.removeprefix("_"))


async def _rescue_lapsed(services: Services) -> None:
    for job in await services.store.jobs.lapsed(BATCH_SIZE):
        await _transition(services, job, _lapse_transition(services, job))


async def _apply_verdicts(services: Services) -> None:
    for job in await services.store.jobs.due_for_release(BATCH_SIZE):
        if job.decision is not None:
            await _transition(services, job, verdict_transition(job, job.decision, services.ids.actor))


async def _expire_reviews(services: Services) -> None:
    for job in await services.store.jobs.overdue(BATCH_SIZE):
        await _transition(services, job, *_expire_transitions(services, job))


async def _wake_runs(services: Services) -> None:
    wake = TransitionRequest(verb="wake", actor=services.ids.actor, after_seconds={"due_at": 0})
    for run in await services.store.runs.stalled(BATCH_SIZE):
        await _transition(services, run, wake)


async def _purge(services: Services) -> None:
    if (older_than_seconds := services.rules.retention_seconds) is not None:
        await _purge_jobs(services, older_than_seconds)
        await services.store.batches.purge(older_than_seconds, BATCH_SIZE)


async def _erase(services: Services) -> None:
    await continue_erasures(services, max_pages=ERASED_PAGES)


async def _purge_jobs(services: Services, older_than_seconds: float) -> None:
    """Purge old jobs in batches until none is left or the next sweep is due.

    A pause between batches lets other writers in.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + services.rules.sweep_seconds
    while clock() < deadline:
        if await services.store.jobs.purge(older_than_seconds, PURGE_BATCH_SIZE) < PURGE_BATCH_SIZE:
            return
        await asyncio.sleep(PURGE_PAUSE_SECONDS)


async def _transition(services: Services, job: Job, *requests: TransitionRequest) -> None:
    """Change `job`. If that fails, log it: one row that cannot be changed keeps no other one from its change."""
    try:
        changed = await services.store.jobs.transition(job.id, *requests)
    except (Stale, JobNotFound):  # another process changed the job first
        return
    except Overloaded:
        raise
    except Exception:
        log.exception("sweep_transition_failed", job_id=job.id, verb=requests[0].verb)
        return
    store_answer(services, changed)
    if changed.status == "bot":
        services.adapters.broker.notify(changed.id, changed.priority)


def _lapse_transition(services: Services, job: Job) -> TransitionRequest:
    actor = services.ids.actor
    if job.lane == "now":
        error = INTERRUPTED
    elif job.attempt >= job.max_attempts:
        text = f"The worker was lost {job.attempt} times; the last error: {job.error.message if job.error else 'none'}"
        error = JobError(code="attempts_exhausted", message=text, status=502)
    else:
        return TransitionRequest(verb="lapse", actor=actor, to="bot", lease=job.lease, after_seconds={"due_at": 0})
    return TransitionRequest(verb="lapse", actor=actor, to="fail", lease=job.lease, changes={"error": error})


def _expire_transitions(services: Services, job: Job) -> list[TransitionRequest]:
    actor = services.ids.actor
    match "stay" if needs_single_decision(job) else deadline_of(job.ruling, job.policy).outcome:
        case Escalation(escalate=queue):
            changes = {"review_queue": queue or None, "assignee": None, "review_lease": None}
            after = {"escalated_at": 0.0}
            return [TransitionRequest(verb="expire", actor=actor, to="human", changes=changes, after_seconds=after)]
        case "stay":
            return [TransitionRequest(verb="expire", actor=actor, to="human")]
        case "approve" if job.response is not None:
            decision = Decision(verdict="approve", reviewer="policy", reason="No reviewer decided before the deadline.")
            return [TransitionRequest(verb="expire", actor=actor, to="success", changes={"decision": decision})]
        case "approve" | "reject":  # an answer that nobody wrote cannot be approved
            error = JobError(code="expired", message="No reviewer decided before the deadline.", status=403)
            return [TransitionRequest(verb="expire", actor=actor, to="fail", changes={"error": error})]
