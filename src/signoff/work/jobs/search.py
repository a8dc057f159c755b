"""Search of jobs by what no index has: text, target, door, prompt, cache, and cost.

A search walks an index by status, owner and time from the newest job on, and looks at a bounded number of jobs for a
bounded time. So it costs the same however long the history is and however large the jobs are, and says how far it came.
"""

import msgspec

from signoff.core.access import Caller, may_review
from signoff.core.filters import JobFilter
from signoff.core.job import Job, Status
from signoff.core.text_search import TextSearch
from signoff.core.times import DAY_US
from signoff.errors import Forbidden
from signoff.work.jobs.query import get_job, list_jobs
from signoff.work.pipelines.history import run_log
from signoff.work.services import Services

MAX_EXAMINED = 2000
# Bytes of the requests and answers that one search looks at; reading a megabyte takes about ten milliseconds.
MAX_EXAMINED_BYTES = 32 * 1024 * 1024
# A search ends with the page in which this time is over, however slow the disk and the machine are.
MAX_US = 120_000
PAGE = 250
MAX_STEPS = 200


class JobSearch(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs to search for, newest first; the conditions are joined by AND, and None or an empty text is no condition."""

    status: Status | None = None
    """Status of the jobs."""
    user: str = ""
    """Email of the owner, for reviewers and admins."""
    target: str = ""
    """Name of the model, prompt or pipeline that was requested."""
    model: str = ""
    """Name of the model behind it."""
    door: str = ""
    """Name of the door."""
    prompt: str = ""
    """Name of the prompt."""
    prompt_version: int | None = None
    """Version of the prompt."""
    token: int | None = None
    """Id of the token."""
    cache: str = ""
    """Use of the response cache."""
    text: str = ""
    """Text in the request or the answer, without regard to case; or the beginning of an id."""
    since: int | None = None
    """Earliest time, in microseconds since 1970, UTC."""
    until: int | None = None
    """Time before which the jobs were received, in microseconds since 1970, UTC."""
    after_id: str | None = None
    """Cursor: `next_id` of the result before."""
    limit: int = 50
    """Largest number of jobs in the result."""
    by_cost: bool = False
    """True to return the most expensive of the jobs that were looked at, instead of the newest."""

    @property
    def is_indexed(self) -> bool:
        """True if an index has all conditions, so that every job that is looked at matches."""
        names = (self.target, self.model, self.door, self.prompt, self.cache, self.text)
        return not (any(names) or self.by_cost or self.prompt_version is not None or self.token is not None)


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that match, and how far the search came."""

    jobs: list[Job]
    """The jobs, as the caller may see them."""
    examined: int
    """Number of jobs that were looked at."""
    next_id: str | None
    """Cursor of the next search; None if all jobs of the range were looked at."""
    reached_at: int | None
    """Time of the oldest job that was looked at; None if there was none."""


async def search_jobs(services: Services, caller: Caller, search: JobSearch) -> SearchResult:
    """Return the next jobs that match, after MAX_EXAMINED jobs, MAX_EXAMINED_BYTES or MAX_US. Raises Forbidden."""
    ends_at = services.clock() + MAX_US
    matching, examined, examined_bytes, last = list[Job](), 0, 0, None
    job_filter, matcher = await _filter_of(services, caller, search), TextSearch(search.text) if search.text else None
    while job_filter is not None:
        page = await list_jobs(services, caller, job_filter)
        for job in page:
            if _is_before(job, search.since):
                return _result(search, matching, examined, last)
            examined, last = examined + 1, job
            examined_bytes += len(job.body) + len(job.response or b"")
            if _matches(job, search, matcher):
                matching.append(job)
            is_enough = examined == MAX_EXAMINED or examined_bytes >= MAX_EXAMINED_BYTES
            if is_enough or (len(matching) == search.limit and not search.by_cost):
                return _result(search, matching, examined, last, next_id=job.id)
        if not page or not page.may_continue:
            break
        if services.clock() >= ends_at and not search.is_indexed:
            return _result(search, matching, examined, last, next_id=page[-1].id)
        job_filter = msgspec.structs.replace(job_filter, after_id=page[-1].id)
    return _result(search, matching, examined, last)


async def list_steps(services: Services, caller: Caller, run_id: str) -> list[Job]:
    """Return the jobs of the steps of a run, in the order of the tree of its calls. Raises JobNotFound."""
    calls = await run_log(services, caller, run_id)
    ids = [call.job_id for call in calls if call.job_id is not None]
    return [await get_job(services, caller, each) for each in ids[:MAX_STEPS]]


async def _filter_of(services: Services, caller: Caller, search: JobSearch) -> JobFilter | None:
    """Return the part of the search that an index has; None if no job can match."""
    user_id: int | None = None
    if search.user:
        if not may_review(caller) and search.user.lower() != caller.email:
            raise Forbidden("Only a reviewer or an admin may search for the jobs of another user.")
        user = await services.store.people.user(search.user)
        if user is None:
            return None
        user_id = user.id
    after_id = search.after_id or (None if search.until is None else first_id(search.until))
    size = search.limit if search.is_indexed else PAGE
    return JobFilter(status=search.status, user_id=user_id, after_id=after_id, limit=size, newest_first=True)


def first_id(at: int) -> str:
    """Return a lower bound for the ids that are made from the time `at` on, in microseconds since 1970.

    Ids are UUIDs whose first 48 bits are milliseconds since 1970 (RFC 9562, version 7).
    """
    milliseconds = max(0, -(-at // 1000))
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}"


def _is_before(job: Job, since: int | None) -> bool:
    """Return True if no job after this one was received since then: a row may be written a day after its id is made."""
    return since is not None and job.id < first_id(since - DAY_US)


def _result(
    search: JobSearch, matching: list[Job], examined: int, last: Job | None, *, next_id: str | None = None
) -> SearchResult:
    if search.by_cost:
        matching = sorted(matching, key=lambda job: (-(job.cost_nanodollars or 0), job.id))[: search.limit]
    reached_at = None if last is None else last.created_at
    return SearchResult(jobs=matching, examined=examined, next_id=next_id, reached_at=reached_at)


def _matches(job: Job, search: JobSearch, matcher: TextSearch | None) -> bool:
    wanted = (
        (search.target, job.target),
        (search.model, job.model),
        (search.door, job.door),
        (search.prompt, job.prompt),
        (search.cache, job.cache or "bypass"),
    )
    return (
        all(not name or name == value for name, value in wanted)
        and search.prompt_version in {None, job.prompt_version}
        and search.token in {None, job.token_id}
        and (search.since is None or job.created_at >= search.since)
        and (search.until is None or job.created_at < search.until)
        and (matcher is None or job.id.startswith(search.text.lower()) or matcher.matches(job.body, job.response))
    )
