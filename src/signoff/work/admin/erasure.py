"""Erasure of a user: everything that they sent, and everything that was answered to them.

Each step can be repeated, and the database says how far it came, so a sweeper goes on where a process was killed.
"""

import contextlib

from signoff.core.access import Caller, User, check_admin
from signoff.core.cache import CacheFilter
from signoff.core.filters import JobFilter
from signoff.core.job import Job, JobError
from signoff.errors import JobNotFound, Stale
from signoff.store import TransitionRequest
from signoff.work.admin.people import UserChange, change_user
from signoff.work.batches.files import collect_files
from signoff.work.services import Services

PAGE = 50
MAX_PENDING = 10
# Calls that run when a user is erased end within seconds, and are logged then.
FINAL_SECONDS = 60.0
ERASED = JobError(code="cancelled", message="The owner of the job was erased.", status=409)


async def begin_erasure(services: Services, caller: Caller, user_id: int) -> User:
    """Disable a user for good, and begin to erase them; servers go on with that until it is finished.

    Raises Forbidden, NotFound, and Conflict if no active admin would be left.
    """
    check_admin(caller)
    user = await change_user(services, caller, user_id, UserChange(active=False))
    await services.store.erasures.begin(user_id)
    return user


async def erase_user(services: Services, caller: Caller, user_id: int) -> int:
    """Erase a user now, and return the number of their jobs. Jobs that end later are erased by a server.

    Raises what `begin_erasure` and `erase_page` raise.
    """
    check_admin(caller)
    await begin_erasure(services, caller, user_id)
    count = 0
    if await services.store.files.erase(user_id):
        await collect_files(services)
    while erased := await erase_page(services, user_id):
        count += erased
    await _finish(services, user_id, is_final=False)
    return count


async def continue_erasures(services: Services, *, max_pages: int) -> None:
    """Go on with the erasures that are not finished, with up to `max_pages` pages of jobs of each user."""
    for pending in await services.store.erasures.pending(MAX_PENDING):
        pages = 0
        files = await services.store.files.erase(pending.user_id)  # the collector deletes their contents
        while pages < max_pages and await erase_page(services, pending.user_id):
            pages += 1
        if not files and pages < max_pages and pending.age_seconds > FINAL_SECONDS:
            await _finish(services, pending.user_id, is_final=True)


async def erase_page(services: Services, user_id: int) -> int:
    """Erase some jobs of a user, and copies of them for reviewers; return their number, 0 if none is left.

    Raises whatever Redis raises if it cannot delete results; then their jobs stay, for the next attempt.
    """
    page = await services.store.jobs.list(JobFilter(user_id=user_id, with_copies=True, limit=PAGE))
    await services.store.erasures.close_audits([job.id for job in page])
    for job in page:
        if not job.is_terminal:
            await _cancel(services, job)
    for kind, deliverer in services.adapters.deliverers.items():
        addresses = [to.address for job in page for to in job.deliver if to.kind == kind]
        await deliverer.withdraw(addresses)
    return await services.store.erasures.delete_jobs(user_id, [job.id for job in page])


async def _cancel(services: Services, job: Job) -> None:
    request = TransitionRequest(verb="cancel", actor=services.ids.actor, changes={"error": ERASED})
    with contextlib.suppress(Stale, JobNotFound):  # it has ended
        await services.store.jobs.transition(job.id, request)


async def _finish(services: Services, user_id: int, *, is_final: bool) -> None:
    """Delete the cached answers of a user in all processes, and their email."""
    await services.caches.responses.delete(CacheFilter(user_id=user_id))
    await services.store.changed("cache")
    await services.store.erasures.finish(user_id, is_final=is_final)
