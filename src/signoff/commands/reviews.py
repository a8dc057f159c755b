"""`signoff review`: review held answers one after another in a terminal, with one key for each verdict."""

import asyncio
import contextlib
import difflib
import os
import select
import sys
import termios
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Annotated, Literal

import click
import msgspec
import typer
from rich.text import Text

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import OPERATOR, err, out, run
from signoff.core.dialects.answer import answer_text
from signoff.core.dialects.edited_answer import shown_answer
from signoff.core.dialects.transcript import answer_details, transcript
from signoff.core.job import Edit, Job
from signoff.core.printable import printable
from signoff.core.reviews.item import text_of
from signoff.core.reviews.votes import as_seen_by
from signoff.errors import SignoffError
from signoff.settings import load
from signoff.work.reviews.desk import VerdictRequest, decide_on_desk, release_verdict, save_draft, undo_verdict
from signoff.work.reviews.leases import LOCK_SECONDS, MAX_SKIPPED, lock_for_review, take_next
from signoff.work.reviews.queues import list_reasons
from signoff.work.services import Services

review_commands = CommandGroup(panel="Jobs")
LOCAL_FLAGS = 3  # position in what `tcgetattr` returns
KEYS = "a approve  e edit  r send back  x reject  s skip  u undo  q quit"
EDITOR_FAILED = "The editor could not be started; set EDITOR to the program that you edit texts with."
Result = Literal["next", "again", "quit"]


class ReviewSession(msgspec.Struct):
    """State of the command: what was skipped, and the verdicts that may still be undone."""

    services: Services
    queue: str | None
    """Review queue; None for all queues."""
    skipped: list[str] = []
    """Ids of skipped jobs, the latest last."""
    pending: list[Job] = []
    """Jobs with a verdict of this session that has not taken effect, the latest last."""


@review_commands.register("review", "signoff review", "signoff review --queue support")
def review(
    queue: Annotated[str | None, typer.Option(help="Review queue; default: all of them.")] = None,
) -> None:
    """Review held answers, one after another."""
    run(load(), lambda services: _review_all(ReviewSession(services, queue)))


async def _review_all(session: ReviewSession) -> None:
    try:
        while (job := await _next(session)) is not None:
            result: Result = "again"
            async with _review_lease(session, job):
                while result == "again":
                    _print_job(job)
                    result = await _act(session, job, await asyncio.to_thread(_read_key))
                    job = await _reloaded(session, job)
            if result == "quit":
                return
        out.print("No more answers are held for review.")
    finally:
        await _release(session)


async def _next(session: ReviewSession) -> Job | None:
    job = await take_next(session.services, OPERATOR, session.queue, session.skipped[-MAX_SKIPPED:])
    return None if job is None else as_seen_by(job, OPERATOR.email)


@contextlib.asynccontextmanager
async def _review_lease(session: ReviewSession, job: Job) -> AsyncGenerator[None]:
    """Renew the review lease of a job for the duration of the block, and give it up if there is no verdict then."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(LOCK_SECONDS / 3)
            with contextlib.suppress(SignoffError):
                await lock_for_review(session.services, OPERATOR, job.id, "renew")

    task = asyncio.get_running_loop().create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(SignoffError):
            await lock_for_review(session.services, OPERATOR, job.id, "leave")


async def _reloaded(session: ReviewSession, job: Job) -> Job:
    return as_seen_by(await session.services.store.jobs.get(job.id) or job, OPERATOR.email)


async def _act(session: ReviewSession, job: Job, key: str) -> Result:
    """Perform the action of a key, and return how to go on. An error, such as a lost race, is printed."""
    try:
        match key:
            case "a":
                return await _decide(session, job, VerdictRequest(verdict="approve", round=job.round))
            case "r" | "x" | "e":
                return await {"r": _send_back, "x": _reject, "e": _edit}[key](session, job)
            case "u":
                return await _undo(session)
            case "s":
                session.skipped.append(job.id)
            case _ if key not in {"", "q"}:
                out.print(KEYS)
            case _:
                pass
    except SignoffError as error:
        err.print(error.message, style="red")
        current = await session.services.store.jobs.get(job.id)
        is_same = current is not None and (current.status, current.round) == ("human", job.round)
        return "again" if is_same and current is not None and current.release_at is None else "next"
    return "quit" if key in {"", "q"} else "next" if key == "s" else "again"


async def _send_back(session: ReviewSession, job: Job) -> Result:
    instruction = await asyncio.to_thread(_ask, "Instruction to the model (empty for none)")
    request = VerdictRequest(verdict="redo", round=job.round, instruction=instruction or None)
    return await _decide(session, job, request)


async def _decide(session: ReviewSession, job: Job, request: VerdictRequest) -> Result:
    seconds = session.services.rules.release_after_seconds
    decided = await decide_on_desk(session.services, OPERATOR, job.id, request)
    if decided.release_at is not None:
        session.pending.append(decided)
        out.print(f"  {request.verdict}; u undoes it within {seconds:g} seconds.")
    return "next"


async def _reject(session: ReviewSession, job: Job) -> Result:
    reasons = await list_reasons(session.services, OPERATOR)
    for number, reason in enumerate(reasons, start=1):
        out.print(f"  {number} {reason}")
    text = await asyncio.to_thread(_ask, "Reason, or its number" if reasons else "Reason")
    if not text:
        out.print("A rejection needs a reason, which the caller gets.")
        return "again"
    is_number = text.isdecimal() and 0 < int(text) <= len(reasons)
    reason = reasons[int(text) - 1] if is_number else text
    return await _decide(session, job, VerdictRequest(verdict="reject", reason=reason, round=job.round))


async def _edit(session: ReviewSession, job: Job) -> Result:
    """Let the reviewer edit the answer in $EDITOR, and save it as a draft, which an approval sends."""
    shown = shown_answer(job)
    try:
        edited = await asyncio.to_thread(click.edit, text_of(shown), extension=".txt")
    except click.ClickException:
        err.print(EDITOR_FAILED, style="red")
        return "again"
    if edited is None or edited.rstrip("\n") == text_of(shown).rstrip("\n"):
        out.print("Nothing was changed.")
        return "again"
    text = edited.removesuffix("\n")
    is_text = answer_text(shown) is not None
    response = msgspec.json.encode(text).decode() if is_text else text
    await save_draft(session.services, OPERATOR, job.id, Edit(response=response), review_round=job.round)
    return "again"


async def _undo(session: ReviewSession) -> Result:
    if not session.pending:
        out.print("There is no verdict to undo.")
        return "again"
    last = session.pending.pop()
    await undo_verdict(session.services, OPERATOR, last.id)
    session.skipped = [job_id for job_id in session.skipped if job_id != last.id]
    out.print(f"  {last.id} waits for a review again.")
    return "next"


async def _release(session: ReviewSession) -> None:
    """Wait until the verdicts of this session can be undone no more, and let them take effect.

    A running server does that as well, but there may be none.
    """
    for job in session.pending:
        seconds = ((job.release_at or 0) - session.services.clock()) / 1_000_000
        await asyncio.sleep(min(max(0.0, seconds), session.services.rules.release_after_seconds) + 0.001)
        with contextlib.suppress(SignoffError):
            await release_verdict(session.services, job)


def _print_job(job: Job) -> None:
    """Print all that the reviewer signs off: the request, the answer, and the difference of the draft to it."""
    draft = job.draft or Edit()
    queue = f"  queue {job.review_queue}" if job.review_queue else ""
    out.print(f"\n{job.id}  {job.target}{queue}")
    _print_texts("request", transcript(job.body))
    if draft.payload is not None:
        _print_texts(
            "request of the saved draft, which is sent when you send it back", transcript(draft.payload.encode())
        )
    _print_texts("answer", [("", text_of(job.response))])
    shown = shown_answer(job)
    if draft.response is not None:
        out.print("  saved draft, which is sent when you approve:")
        for line in _difference(text_of(job.response), text_of(shown)):
            out.print(line)
    if (details := answer_details(shown)) is not None:
        _print_texts("whole answer", [("", details)])
    out.print(KEYS)


def _difference(before: str, after: str) -> Iterator[Text]:
    """Yield the lines of both texts: removed ones in red after `-`, added ones in green after `+`."""
    styles = {"-": "red", "+": "green"}
    for line in difflib.ndiff(printable(before).splitlines(), printable(after).splitlines()):
        if not line.startswith("?"):
            yield Text(f"    {line}", style=styles.get(line[0], ""))


def _print_texts(title: str, entries: Sequence[tuple[str, str]]) -> None:
    out.print(f"  {title}:")
    for role, text in entries:
        lines = printable(f"{role}: {text}" if role else text).splitlines() or [""]
        for line in lines:
            out.print(f"    {line}")


def _read_key() -> str:
    """Return the next key: at once on a terminal, and otherwise the first one of the next line; empty at the end."""
    if sys.stdin.isatty():
        return _terminal_key(sys.stdin.fileno())
    while (line := sys.stdin.readline()).isspace():
        pass
    return line.strip()[:1]


def _terminal_key(fd: int) -> str:
    """Return the next key of a terminal, also one that was pressed before; empty for Ctrl+C, Ctrl+D, and the end."""
    before = termios.tcgetattr(fd)
    mode = termios.tcgetattr(fd)
    mode[LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
    termios.tcsetattr(fd, termios.TCSANOW, mode)
    try:
        key = os.read(fd, 1).decode(errors="replace")
        if key == "\x1b" and select.select([fd], [], [], 0.05)[0]:  # an arrow or a function key is several bytes
            os.read(fd, 32)
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
    return "" if key in {"\x03", "\x04"} else key


def _ask(question: str) -> str:
    out.print(f"{question}: ", end="")
    return sys.stdin.readline().strip()
