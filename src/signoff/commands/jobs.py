"""`signoff jobs` and `signoff review`: looking, and reviewing, from a terminal."""

from __future__ import annotations

import asyncio
from typing import Annotated, cast

import typer
from rich.table import Table

from signoff.commands.terminal import OPERATOR, err, out, run, shown, stop
from signoff.core.answer import answer_text
from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, Job, Status, Verdict
from signoff.errors import SignoffError
from signoff.settings import load
from signoff.work.jobs.query import list_jobs
from signoff.work.reviews.desk import VerdictRequest, decide
from signoff.work.services import Services

looking = typer.Typer()


@looking.command()
def jobs(
    status: Annotated[str | None, typer.Option(help=" | ".join(STATUSES))] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 20,
) -> None:
    """The latest jobs."""
    if status not in {None, *STATUSES}:
        stop(f"There is no status {status!r}; there are {', '.join(STATUSES)}.")
    which = JobFilter(status=cast("Status | None", status), limit=limit, newest_first=True)
    found, total = run(load(), lambda services: list_jobs(services, OPERATOR, which))
    table = Table("id", "status", "model", "answer", caption=f"{total} in all")
    for job in found:
        table.add_row(job.id, job.status, shown(job.target), _answer(job)[:80])
    out.print(table)


@looking.command()
def review() -> None:
    """Reviews held answers, one after another."""
    run(load(), _review_all)


async def _review_all(services: Services) -> None:
    seen = ""
    while found := (await list_jobs(services, OPERATOR, JobFilter(status="human", after_id=seen, limit=1)))[0]:
        job = found[0]
        seen = job.id
        asked = shown(job.body.decode(errors="replace"))
        out.print(f"\n{job.id}  {shown(job.target)}\n  asked:    {asked}\n  answered: {_answer(job)}")
        if not await _review_one(services, job):
            return
    out.print("Nothing (more) waits.")


async def _review_one(services: Services, job: Job) -> bool:
    """Asks for a verdict; False when the reviewer has had enough."""
    verdicts: dict[str, Verdict] = {"a": "approve", "r": "redo", "x": "reject"}
    choice = await asyncio.to_thread(typer.prompt, "a approve, r ask again, x reject, s skip, q quit", default="s")
    if choice in verdicts:
        reason = await asyncio.to_thread(typer.prompt, "Reason") if choice == "x" else None
        opinion = VerdictRequest(verdict=verdicts[choice], reason=reason, round=job.round)
        try:
            await decide(services, OPERATOR, job.id, opinion)
        except SignoffError as error:  # somebody else was faster
            err.print(error.message, style="red")
    return choice != "q"


def _answer(job: Job) -> str:
    if job.response is None:
        return shown(job.error.message) if job.error else ""
    return shown(answer_text(job.response) or job.response.decode(errors="replace"))
