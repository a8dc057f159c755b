"""`signoff jobs`: list jobs, or show one."""

from typing import Annotated

import msgspec
import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import OPERATOR, choice, out, print_table, run, table_of
from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, Job
from signoff.core.reviews.item import text_of
from signoff.core.wire import job_as_json
from signoff.settings import load
from signoff.work.jobs.query import JobCount, count_jobs, get_job, list_jobs
from signoff.work.services import Services

job_commands = CommandGroup(panel="Jobs")


@job_commands.register("jobs", "signoff jobs --status human", "signoff jobs 01a1fbeb-8a3e-7c52-b7a6-0d6f5a1c2e3f")
def jobs(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="Show this job as JSON.")] = None,
    status: Annotated[str | None, typer.Option(help=" | ".join(STATUSES))] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of jobs.", min=1, max=1000)] = 20,
) -> None:
    """List the latest jobs, or show one."""
    if job_id is not None:
        job = run(load(), lambda services: get_job(services, OPERATOR, job_id))
        out.print(msgspec.json.format(msgspec.json.encode(job_as_json(job))).decode())
        return
    job_filter = JobFilter(status=choice("status", status, STATUSES), limit=limit, newest_first=True)
    rows, count = run(load(), lambda services: _rows_and_count(services, job_filter))
    table = table_of("id", "status", "model", "answer", caption=f"{count} in all")
    for row in rows:
        table.add_row(*row)
    print_table(table)


async def _rows_and_count(services: Services, job_filter: JobFilter) -> tuple[list[tuple[str, ...]], JobCount]:
    """Return a row for each job, from as many pages as needed."""
    rows, after_id = list[tuple[str, ...]](), job_filter.after_id
    while len(rows) < job_filter.limit:
        limit = job_filter.limit - len(rows)
        page_filter = msgspec.structs.replace(job_filter, after_id=after_id, limit=limit)
        page = await list_jobs(services, OPERATOR, page_filter)
        rows += [(job.id, job.status, job.target, _answer(job)[:80]) for job in page]
        if not page or not page.may_continue:
            break
        after_id = page[-1].id
    return rows, await count_jobs(services, OPERATOR, job_filter)


def _answer(job: Job) -> str:
    if job.response is None:
        return job.error.message if job.error else ""
    return text_of(job.response)
