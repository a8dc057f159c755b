"""Latest outcomes of the rules of policies, counted from the rulings that are stored with the newest jobs."""

from collections import Counter
from typing import Literal

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.filters import JobFilter
from signoff.core.job import Job
from signoff.core.reviews.ruling import Ruling
from signoff.core.times import DAY_US
from signoff.work.services import Services

DAYS = 7
# No sums are kept by rule, as every answer would have to add to them; so the newest jobs are read, and no more.
MAX_EXAMINED = 1000
PAGE = 250
CountedOutcome = Literal["pass", "hold", "reject", "audit"]
# Name of a policy, its version, and the position of the rule; None for the default.
CountedRule = tuple[str, int, int | None]


class RulingCount(msgspec.Struct, kw_only=True):
    """Number of rulings of the latest jobs, by rule and by outcome."""

    examined: int = 0
    """Number of jobs that were looked at."""
    since: int
    """Time of the oldest of them, or the start of the range if it was reached; microseconds since 1970, UTC."""
    is_whole: bool = False
    """True if all jobs of the last DAYS days were looked at."""
    rulings: dict[CountedRule, Counter[CountedOutcome]] = {}
    """`audit` counts answers that the rules let pass, and that a person looks at by chance."""

    def of_policy(self, name: str) -> Counter[CountedOutcome]:
        """Return the counts of all versions and rules of a policy."""
        return sum((counts for rule, counts in self.rulings.items() if rule[0] == name), Counter[CountedOutcome]())


async def count_rulings(services: Services, caller: Caller) -> RulingCount:
    """Count the latest rulings on the newest jobs of the last DAYS days. Raises Forbidden."""
    check_admin(caller)
    begin = services.clock() - DAYS * DAY_US
    counts, after_id = RulingCount(since=begin, rulings={}), None
    while not counts.is_whole and counts.examined < MAX_EXAMINED:
        page = await services.store.jobs.list(JobFilter(after_id=after_id, limit=PAGE, newest_first=True))
        recent = [job for job in page if job.created_at >= begin]
        for job in recent:
            _count(counts, job)
        counts.is_whole = len(recent) < len(page) or not page or not page.may_continue
        after_id = page[-1].id if page else None
    return counts


def _count(counts: RulingCount, job: Job) -> None:
    counts.examined += 1
    if not counts.is_whole:
        counts.since = job.created_at
    ruling = job.ruling
    if ruling is not None and ruling.policy is not None and ruling.version is not None:
        rule = (ruling.policy, ruling.version, ruling.rule)
        counts.rulings.setdefault(rule, Counter())[_outcome_of(ruling)] += 1


def _outcome_of(ruling: Ruling) -> CountedOutcome:
    is_look = ruling.coin is not None and ruling.coin.is_look
    return "audit" if is_look else ruling.outcome
