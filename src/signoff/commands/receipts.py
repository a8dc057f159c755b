"""`signoff receipts`, `verify`, `feedback` and `review-figures`: reports of the decisions of reviewers."""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args

import msgspec
import typer

from signoff.commands.help import CommandGroup
from signoff.commands.prices import DATE_FORMATS
from signoff.commands.terminal import OPERATOR, choice, create_private_file, out, print_table, run, stop, table_of
from signoff.core.choices import choices_of
from signoff.core.decode import TEXT_ENCODING, without_mark
from signoff.core.reviews.feedback import FEEDBACK_KINDS, FeedbackQuery
from signoff.core.reviews.figures import FigureDimension, FigureQuery, totals_as_json
from signoff.core.reviews.receipt import Head, canonical_json, decode_base64, encode_key
from signoff.core.reviews.receipt_chain import BrokenChain, ChainVerifier
from signoff.core.times import DAY_US
from signoff.core.wire import format_time, parse_time
from signoff.records import ReceiptFilter
from signoff.settings import load
from signoff.work.reviews.feedback import export_end, export_feedback
from signoff.work.reviews.receipts import (
    delete_archived_receipts,
    export_receipts,
    last_receipt_before,
    public_key,
    receipts_head,
    review_figures,
    rotate_signing_key,
)
from signoff.work.services import Services

MAX_LINE_BYTES = 1024 * 1024
FIGURE_DAYS = 31
receipt_commands = CommandGroup("Export, archive and anchor the receipts of decisions.", panel="Jobs")
feedback_commands = CommandGroup("Export the decisions of reviewers.", panel="Jobs")
report_commands = CommandGroup(panel="Jobs")
NewFile = Annotated[Path, typer.Argument(metavar="FILE", help="File to write; it must not exist.")]
Since = Annotated[datetime | None, typer.Option(formats=DATE_FORMATS, help="Only from this time (UTC) on.")]
Until = Annotated[datetime | None, typer.Option(formats=DATE_FORMATS, help="Only before this time (UTC).")]


@receipt_commands.register("export", "signoff receipts export receipts.jsonl")
def receipts_export(file: NewFile) -> None:
    """Write all receipts to a file, as JSON Lines; `signoff verify` checks it."""
    count = run(load(), lambda services: _write(file, export_receipts(services, OPERATOR, ReceiptFilter())))
    out.print(f"Wrote {count} receipts to {file}.")


@receipt_commands.register("head", "signoff receipts head > head.json")
def receipts_print_head() -> None:
    """Print the signed number and hash of the last receipt. Store it elsewhere: it shows if receipts were removed."""
    typer.echo(canonical_json(run(load(), lambda services: receipts_head(services, OPERATOR))).decode())


@receipt_commands.register("key", "signoff receipts key > key.txt")
def receipts_key() -> None:
    """Print the public key that signs the next receipt, in base64."""
    typer.echo(encode_key(run(load(), public_key)))


@receipt_commands.register("rotate-key", "signoff receipts rotate-key")
def receipts_rotate_key(
    *, lost: Annotated[bool, typer.Option("--lost", help="The old key cannot be decrypted any more.")] = False
) -> None:
    """Replace the key that signs receipts. The old key announces the new one, unless it is lost."""
    receipt = run(load(), lambda services: rotate_signing_key(services, OPERATOR, is_lost=lost))
    out.print(f"Receipt {receipt.seq} announces the key {receipt.public_key}.")
    if lost:
        out.print("The old key did not sign it: give both keys to `signoff verify`.")


@receipt_commands.register("archive", "signoff receipts archive 2026.jsonl --before 2027-01-01")
def receipts_archive(
    file: NewFile,
    before: Annotated[datetime, typer.Option(formats=DATE_FORMATS, help="Archive receipts before this time (UTC).")],
) -> None:
    """Move old receipts from the database to a file. A signed receipt anchors those that remain."""
    time = parse_time(before.replace(tzinfo=UTC))

    async def archive(services: Services) -> int:
        last = await last_receipt_before(services, OPERATOR, time)
        await _write(file, export_receipts(services, OPERATOR, ReceiptFilter(until_seq=last)))
        return await delete_archived_receipts(services, OPERATOR, last)

    out.print(f"Moved {run(load(), archive)} receipts to {file}.")


@report_commands.register("verify", "signoff verify receipts.jsonl --key key.txt --head head.json")
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Exports, oldest first.")],
    key: Annotated[list[str], typer.Option(help="Public key that you trust: base64, or a file with it.")],
    head: Annotated[Path | None, typer.Option(help="File with a head that was exported before.")] = None,
) -> None:
    """Check receipts offline: nothing altered, removed, moved or added since they were signed."""
    verifier = ChainVerifier([_public_key(text) for text in key], None if head is None else _head(head))
    for file in files:
        with file.open("rb") as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n"):
                    raise BrokenChain(f"The line after receipt {verifier.last} in {file} is cut off.")
                verifier.add(line[:-1])
    verifier.finish()
    head_result = "and the head is one of them" if head else "but no head was given, so newer ones may be missing"
    out.print(f"Receipts {verifier.first} to {verifier.last} are as they were signed, {head_result}.")


@feedback_commands.register("export", "signoff feedback export decisions.jsonl --since 2026-11-01")
def feedback_export(
    file: NewFile,
    kind: Annotated[str, typer.Option(help=" | ".join(FEEDBACK_KINDS))] = "decisions",
    since: Since = None,
    until: Until = None,
    target: Annotated[str | None, typer.Option(help="Only this model or pipeline.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Only this prompt.")] = None,
    prompt_version: Annotated[int | None, typer.Option(help="Only this version of the prompt.")] = None,
    policy: Annotated[str | None, typer.Option(help="Only this policy.")] = None,
    after: Annotated[int, typer.Option(help="Only decisions after this receipt.", min=0)] = 0,
) -> None:
    """Write the decisions that took effect to a file, as JSON Lines."""
    query = FeedbackQuery(
        kind=choice("kind", kind, FEEDBACK_KINDS) or "decisions",
        after_seq=after,
        since=_time(since),
        until=_time(until),
        target=target,
        prompt=prompt,
        prompt_version=prompt_version,
        policy=policy,
    )

    async def export(services: Services) -> tuple[int, int]:
        end = await export_end(services, OPERATOR)
        return await _write(file, export_feedback(services, OPERATOR, query, until_seq=end)), end

    count, end = run(load(), export)
    out.print(f"Wrote {count} rows to {file}. The next export goes on with --after {max(end, after)}.")


@report_commands.register("review-figures", "signoff review-figures --by policy,day")
def figures(
    by: Annotated[
        str, typer.Option(help="Dimensions: policy, target, prompt(_version), reviewer, hour, day.")
    ] = "reviewer",
    since: Since = None,
    until: Until = None,
) -> None:
    """Print figures of the decisions that took effect; without --since, of the last 31 days."""
    dimensions: tuple[FigureDimension, ...] | None = choices_of(by, get_args(FigureDimension))
    if dimensions is None:
        stop(f"--by must be a list of {', '.join(get_args(FigureDimension))}, separated by commas (got {by!r}).")

    async def report(services: Services) -> None:
        start = services.clock() - FIGURE_DAYS * DAY_US if since is None else _time(since) or 0
        query = FigureQuery(by=dimensions, since=start, until=_time(until))
        rows, total = await review_figures(services, OPERATOR, query)
        table = table_of(*dimensions, *(name.replace("_", " ") for name in totals_as_json(total)))
        for dimensions_of_row, totals in [*((row.dimensions, row.totals) for row in rows), ({}, total)]:
            names = (_cell(name, dimensions_of_row[name]) if dimensions_of_row else "" for name in dimensions)
            table.add_row(*names, *(_number(value) for value in totals_as_json(totals).values()))
        print_table(table)

    run(load(), report)


def _cell(name: str, value: str | int | None) -> str:
    if isinstance(value, int) and name in {"hour", "day"}:
        return format_time(value)[: 10 if name == "day" else 16].replace("T", " ")
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _time(time: datetime | None) -> int | None:
    return None if time is None else parse_time(time.replace(tzinfo=UTC))


async def _write(file: Path, lines: AsyncIterator[bytes]) -> int:
    """Write lines to a new file that only its owner may read, and return their number. An error leaves no file."""
    descriptor = create_private_file(file)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            count = 0
            async for line in lines:
                stream.write(line)
                count += 1
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        os.unlink(file)  # noqa: PTH108 -- it does not block for long
        raise
    return count


def _public_key(text: str) -> bytes:
    """Return a public key from base64, or from a file that has it, alone or as `/api/receipts/key` returns it."""
    if (path := Path(text)).is_file():
        text = path.read_text(TEXT_ENCODING).strip()
    try:
        if text.startswith("{"):
            text = msgspec.json.decode(text, type=dict[str, str])["public_key"]
        public_key = decode_base64(text)
        ChainVerifier([public_key])
    except (ValueError, KeyError):
        stop(f"--key must be an Ed25519 public key of 32 bytes in base64, or a file with one (got {text!r}).")
    return public_key


def _head(path: Path) -> Head:
    try:
        return msgspec.json.decode(without_mark(path.read_bytes()), type=Head)
    except (ValueError, msgspec.MsgspecError) as error:
        stop(f"--head must be a file that `signoff receipts head` wrote ({path}: {error}).")
