"""Commands on receipts, feedback and figures, as operators and auditors use them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from signoff.commands.receipts import _cell
from signoff.core.job import Decision, Edit, Job
from signoff.server.bootstrap import open_services
from signoff.settings import Settings
from signoff.work.admin.people import create_user
from signoff.work.reviews.desk import verdict_transition
from signoff.work.services import Services
from support.database_files import make_file
from support.processes import clean_environment, run_many
from support.stores import ANSWER, a_job, a_step

EDITED = '{"choices":[{"message":{"role":"assistant","content":"better"}}]}'


async def review(services: Services, user_id: int, *verdicts: str) -> list[Job]:
    """Insert jobs of a user, and decide on their answers, with an edit of each that is approved."""
    jobs = list[Job]()
    for verdict in verdicts:
        edit = Edit(response=EDITED) if verdict == "approve" else Edit()
        decision = Decision(verdict=verdict, reviewer="ann", reason="Because.", edit=edit)  # type: ignore[arg-type]
        job = await services.store.jobs.insert(a_job(user_id=user_id, lease="mine"), actor="test", lease_seconds=60)
        job = await services.store.jobs.transition(job.id, a_step("hold", changes={"response": ANSWER}))
        decide = a_step(
            "decide", changes={"decision": decision}, after_seconds={"release_at": 0}, decision=decision, reviewer="ann"
        )
        jobs.append(await services.store.jobs.transition(job.id, decide, verdict_transition(job, decision, "test")))
    return jobs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the data of a server on which two decisions were made."""

    async def prepare() -> None:
        async with open_services(Settings(data_dir=tmp_path / "data")) as services:
            user = await create_user(services, "bob@example.com", "user")
            await review(services, user.id, "approve", "reject")

    make_file(tmp_path / "data" / "signoff.db")
    asyncio.run(prepare())
    return tmp_path


def run(folder: Path, *commands: list[str]) -> list[tuple[int, str, str]]:
    """Run commands with an empty input in one process."""
    environment = clean_environment(folder / "data", COLUMNS="200")
    return run_many(environment, *([*command, ""] for command in commands), folder=folder)


def test_receipts_are_exported_and_verified_offline(folder: Path) -> None:
    (_, key, _), (_, head, _), exported, again = run(
        folder,
        ["receipts", "key"],
        ["receipts", "head"],
        ["receipts", "export", "all.jsonl"],
        ["receipts", "export", "all.jsonl"],
    )
    assert exported[:2] == (0, "Wrote 3 receipts to all.jsonl.\n")
    assert again == (1, "", "all.jsonl exists already and is not overwritten; choose another file name.\n")
    (folder / "head.json").write_text(head)
    (folder / "key.txt").write_text(key)
    lines = (folder / "all.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "altered.jsonl").write_bytes(b"".join([lines[0], lines[1].replace(b"approve", b"reject!"), lines[2]]))
    (folder / "cut.jsonl").write_bytes(b"".join(lines[:2]))
    (folder / "half.jsonl").write_bytes(b"".join(lines)[:-1])
    verify = ["--key", "key.txt", "--head", "head.json"]
    offline = {"SIGNOFF_DATA_DIR": str(folder / "nowhere"), "SIGNOFF_DATABASE_URL": "postgresql://127.0.0.1:1/none"}
    results = run_many(
        clean_environment(folder / "nowhere", **offline),
        ["verify", "all.jsonl", *verify, ""],
        ["verify", "altered.jsonl", *verify, ""],
        ["verify", "cut.jsonl", *verify, ""],
        ["verify", "half.jsonl", *verify, ""],
        ["verify", "all.jsonl", "--key", "AAAA", ""],
        ["verify", "nothing.jsonl", *verify, ""],
        folder=folder,
    )
    assert results[0][:2] == (0, "Receipts 1 to 3 are as they were signed, and the head is one of them.\n")
    assert [code for code, _, _ in results[1:]] == [1] * 5
    messages = ["receipt 2 was altered", "Receipts 3 to 3 are missing at the end", "after receipt 2 in half.jsonl"]
    messages += ["--key must be an Ed25519", "nothing.jsonl"]
    for (_, _, error), message in zip(results[1:], messages, strict=True):
        assert message in error
        assert "Traceback" not in error


def test_receipts_are_archived_and_the_key_is_replaced(folder: Path) -> None:
    (_, key, _), too_old, archived, rotated, *rest = run(
        folder,
        ["receipts", "key"],
        ["receipts", "archive", "none.jsonl", "--before", "2001-01-01"],
        ["receipts", "archive", "old.jsonl", "--before", "2999-01-01"],
        ["receipts", "rotate-key"],
        ["receipts", "export", "new.jsonl"],
        ["verify", "old.jsonl", "new.jsonl", "--key", "KEY"],
        ["review-figures", "--by", "reviewer,day"],
        ["review-figures", "--by", "model"],
    )
    assert too_old[0] == 1
    assert "There is no receipt before that time; name a later one." in too_old[2]
    assert not (folder / "none.jsonl").exists()
    assert archived[:2] == (0, "Moved 3 receipts to old.jsonl.\n")
    assert rotated[1].startswith("Receipt 5 announces the key ")
    assert rest[0][1] == "Wrote 2 receipts to new.jsonl.\n"
    assert rest[1][0] == 1  # `KEY` is no key
    [verified, alone] = run(
        folder,
        ["verify", "old.jsonl", "new.jsonl", "--key", key.strip()],
        ["verify", "new.jsonl", "--key", key.strip()],
    )
    assert [verified[0], alone[0]] == [0, 0]
    assert "Receipts 1 to 5" in verified[1]
    assert "Receipts 4 to 5" in alone[1]
    assert "ann" in rest[2][1]
    assert rest[3][0] == 1


def test_only_hours_and_days_of_figures_are_printed_as_times() -> None:
    cells = [("prompt_version", 2), ("prompt", None), ("day", 86_400_000_000), ("hour", 3_600_000_000)]
    assert [_cell(*cell) for cell in cells] == ["2", "", "1970-01-02", "1970-01-01 01:00"]


def test_feedback_is_exported_and_a_user_is_erased(folder: Path) -> None:
    decisions, pairs, unknown, refused, erased, after = run(
        folder,
        ["feedback", "export", "all.jsonl"],
        ["feedback", "export", "pairs.jsonl", "--kind", "preference"],
        ["feedback", "export", "x.jsonl", "--kind", "every"],
        ["user", "erase", "nobody@example.com", "--yes"],
        ["user", "erase", "bob@example.com", "--yes"],
        ["feedback", "export", "after.jsonl"],
    )
    assert decisions[1] == "Wrote 2 rows to all.jsonl. The next export goes on with --after 3.\n"
    rows = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    assert [(row["verdict"], row["reason"]) for row in rows] == [("approve", "Because."), ("reject", "Because.")]
    [pair] = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert pair["preferred_output"][0]["content"] == "better"
    assert [pairs[0], unknown[0], refused[0]] == [0, 1, 1]
    assert erased[0] == 0
    assert erased[1].startswith("Erased 2 jobs. The user is now erased-1@signoff.invalid;")
    assert after[1].startswith("Wrote 0 rows")
