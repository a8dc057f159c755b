"""`signoff jobs` and `signoff review`: list jobs, and review held answers, in a terminal."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, cast

import msgspec
import typer
from rich.table import Table

from signoff.commands.terminal import OPERATOR, err, out, printable, run, stop
from signoff.core.dialects.answer import answer_text
from signoff.core.dialects.edited_answer import edited_answer
from signoff.core.dialects.transcript import answer_details, transcript
from signoff.core.filters import JobFilter
from signoff.core.job import STATUSES, Edit, Job, Status, Verdict
from signoff.core.wire import job_as_json
from signoff.errors import SignoffError
from signoff.settings import load
from signoff.work.jobs.query import JobCount, count_jobs, get_job, list_jobs
from signoff.work.reviews.desk import VerdictRequest, decide, with_draft
from signoff.work.services import Services

job_commands = typer.Typer()


@job_commands.command()
def jobs(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this job as JSON.")] = None,
    status: Annotated[str | None, typer.Option(help=" | ".join(STATUSES))] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of jobs.", min=1, max=1000)] = 20,
) -> None:
    """List the latest jobs, or show one."""
    if job_id is not None:
        job = run(load(), lambda services: get_job(services, OPERATOR, job_id))
        out.print(printable(msgspec.json.format(msgspec.json.encode(job_as_json(job))).decode()))
        return
    if status not in {None, *STATUSES}:
        stop(f"--status must be one of {', '.join(STATUSES)} (got {status!r}).")
    job_filter = JobFilter(status=cast("Status | None", status), limit=limit, newest_first=True)
    rows, count = run(load(), lambda services: _rows_and_count(services, job_filter))
    table = Table("id", "status", "model", "answer", caption=f"{count} in all")
    for row in rows:
        table.add_row(*row)
    out.print(table)


async def _rows_and_count(services: Services, job_filter: JobFilter) -> tuple[list[tuple[str, ...]], JobCount]:
    """Return a row for each job, from as many pages as needed."""
    rows, after_id = list[tuple[str, ...]](), job_filter.after_id
    while len(rows) < job_filter.limit:
        limit = job_filter.limit - len(rows)
        page_filter = msgspec.structs.replace(job_filter, after_id=after_id, limit=limit)
        page = await list_jobs(services, OPERATOR, page_filter)
        rows += [(job.id, job.status, printable(job.target), _answer(job)[:80]) for job in page]
        if not page or not page.may_continue:
            break
        after_id = page[-1].id
    return rows, await count_jobs(services, OPERATOR, job_filter)


@job_commands.command()
def review() -> None:
    """Review held answers, one after another."""
    run(load(), _review_all)


async def _review_all(services: Services) -> None:
    last_id = ""
    while held := (await list_jobs(services, OPERATOR, JobFilter(status="human", after_id=last_id, limit=1))):
        job = held[0]
        last_id = job.id
        _print_job(job)
        if not await _review_one(services, job):
            return
    out.print("No more answers are held for review.")


def _print_job(job: Job) -> None:
    """Print all that the reviewer signs off: the whole request, and the answer or the saved draft of it."""
    draft = job.draft or Edit()
    out.print(f"\n{job.id}  {printable(job.target)}")
    _print_texts("request", transcript(job.body))
    if draft.payload is not None:
        _print_texts("request of the saved draft, which is sent when you ask again", transcript(draft.payload.encode()))
    shown = job.response if draft.response is None else edited_answer(job, draft.response.encode())
    _print_texts("answer" if draft.response is None else "saved draft of the answer", [("", _text_of(shown))])
    if (details := answer_details(shown)) is not None:
        _print_texts("whole answer", [("", details)])


def _print_texts(title: str, entries: Sequence[tuple[str, str]]) -> None:
    out.print(f"  {title}:")
    for role, text in entries:
        lines = printable(f"{role}: {text}" if role else text).splitlines() or [""]
        for line in lines:
            out.print(f"    {line}")


async def _review_one(services: Services, job: Job) -> bool:
    """Ask the reviewer for a verdict; return False to quit."""
    verdicts: dict[str, Verdict] = {"a": "approve", "r": "redo", "x": "reject"}
    choice = await asyncio.to_thread(typer.prompt, "a approve, r ask again, x reject, s skip, q quit", default="s")
    if choice in verdicts:
        reason = await asyncio.to_thread(_ask_for_reason) if choice == "x" else None
        verdict = VerdictRequest(verdict=verdicts[choice], reason=reason, round=job.round)
        try:
            await decide(services, OPERATOR, job.id, with_draft(job, verdict))
        except SignoffError as error:  # for example because another reviewer decided first
            err.print(error.message, style="red")
    return choice != "q"


def _ask_for_reason() -> str:
    while not (reason := typer.prompt("Reason").strip()):
        out.print("A rejection needs a reason, which the caller gets.")
    return reason


def _answer(job: Job) -> str:
    if job.response is None:
        return printable(job.error.message) if job.error else ""
    return printable(_text_of(job.response))


def _text_of(answer: bytes | None) -> str:
    return answer_text(answer) or (answer or b"").decode(errors="replace")
