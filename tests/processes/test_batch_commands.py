"""`signoff batch`, and the contents of files in a backup."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from signoff.commands import batches
from signoff.errors import BacklogFull
from signoff.work.batches import manage
from support.batches import CHAT, a_line, as_file
from support.live_server import live
from support.processes import (
    SIGNOFF,
    clean_environment,
    first_token,
    free_port,
    migrated_environment,
    run_command,
    served,
    signoff,
    until,
)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(environment: dict[str, str], cwd: Path, *words: str) -> tuple[int, str]:
    """Run a command; return its exit code, and what it printed."""
    done = run_command((*SIGNOFF, *words), env=environment, cwd=cwd)
    return done.returncode, done.stdout + done.stderr


def test_a_file_is_answered_beside_itself_and_an_interrupted_command_resumes(tmp_path: Path) -> None:
    environment, port = migrated_environment(tmp_path / "data"), free_port()
    (tmp_path / "in.jsonl").write_bytes(as_file(*(a_line(str(number), f"text {number}") for number in range(20))))
    (tmp_path / "bad.jsonl").write_bytes(as_file(a_line("a"), "{"))
    with served(environment, tmp_path, port):
        code, text = command(environment, tmp_path, "batch", "in.jsonl")
        assert (code, "completed: 20 answered, 0 not, of 20." in text) == (0, True), text
        answers = read(tmp_path / "in.output.jsonl")
        assert [line["custom_id"] for line in answers] == [str(number) for number in range(20)]
        assert not (tmp_path / "in.errors.jsonl").exists()
        assert not (tmp_path / "in.jsonl.batch").exists()
        # a file with a fault is reported with its line
        code, text = command(environment, tmp_path, "batch", "bad.jsonl", "--user", "admin@localhost")
        assert code == 1
        assert "bad.jsonl:2: This line is not parseable as valid JSON. (invalid_json_line)" in text
        # and a command that was interrupted waits for the batch that it has created
        ai = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=first_token(tmp_path), max_retries=0)
        first = ai.batches.list().data[0]
        content = (tmp_path / "bad.jsonl").read_bytes()

        state = {"batch_id": first.id, "sha256": hashlib.sha256(content).hexdigest()}
        (tmp_path / "bad.jsonl.batch").write_text(json.dumps(state))
        code, text = command(environment, tmp_path, "batch", "bad.jsonl", "--user", "admin@localhost")
        assert f"Waiting for the batch {first.id}" in text
        assert len(ai.batches.list().data) == 1
        # but not for one of another endpoint
        (tmp_path / "bad.jsonl.batch").write_text(json.dumps(state))
        words = ("bad.jsonl", "--user", "admin@localhost", "--endpoint", "/v1/embeddings")
        code, text = command(environment, tmp_path, "batch", *words)
        assert "Created the batch" in text
        assert {batch.endpoint for batch in ai.batches.list().data} == {CHAT, "/v1/embeddings"}


def test_a_batch_that_was_cancelled_is_a_failure_and_results_of_an_earlier_run_go(tmp_path: Path) -> None:
    environment, port = migrated_environment(tmp_path / "data"), free_port()
    (tmp_path / "in.jsonl").write_bytes(as_file(a_line("a")))
    with served(environment, tmp_path, port):
        ai = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=first_token(tmp_path), max_retries=0)
        signoff(environment, "model", "add", "careful", "--kind", "echo", "--review", "always")
        lines = as_file(a_line("held", model="careful"))
        file = ai.files.create(file=("in.jsonl", lines), purpose="batch")
        batch = ai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        ai.batches.cancel(batch.id)
        state = {"batch_id": batch.id, "sha256": hashlib.sha256(as_file(a_line("a"))).hexdigest()}
        (tmp_path / "in.jsonl.batch").write_text(json.dumps(state))
        (tmp_path / "in.output.jsonl").write_text("old")
        code, text = command(environment, tmp_path, "batch", "in.jsonl", "--user", "admin@localhost")
        assert (code, f"The batch {batch.id} is cancelled" in text) == (1, True), text
        assert not (tmp_path / "in.output.jsonl").exists()
        # and a batch whose requests are all answered leaves no old errors
        (tmp_path / "in.errors.jsonl").write_text("old")
        assert command(environment, tmp_path, "batch", "in.jsonl")[0] == 0
        assert (tmp_path / "in.output.jsonl").exists()
        assert not (tmp_path / "in.errors.jsonl").exists()
        # while a file that no door takes is refused
        code, text = command(environment | {"SIGNOFF_MAX_FILE_BYTES": "10"}, tmp_path, "batch", "in.jsonl")
        assert (code, "FILE must not be larger than 10 bytes (setting `max_file_bytes`)" in text) == (1, True), text


@pytest.mark.anyio
async def test_a_user_with_too_many_batches_gets_no_further_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_bytes(as_file(a_line("a")))
    monkeypatch.setattr(manage, "MAX_OPEN_BATCHES", 0)
    async with live(tmp_path) as server:
        with pytest.raises(BacklogFull):
            await batches._run(server.services, tmp_path / "in.jsonl", CHAT, None)
    assert not (tmp_path / "in.jsonl.batch").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["missing.jsonl"], "missing.jsonl is not a file"),
        (["in.jsonl", "--endpoint", "/v1/models"], "--endpoint must be one of"),
        (["in.jsonl", "--user", "nobody@example.com"], "There is no active user 'nobody@example.com'"),
    ],
    ids=str,
)
def test_an_invalid_argument_is_refused_in_one_line(words: list[str], text: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(as_file(a_line("a")))
    code, printed = command(clean_environment(tmp_path / "data"), tmp_path, "batch", *words)
    assert code == 1
    assert text in printed


def test_a_backup_contains_the_contents_of_files(tmp_path: Path) -> None:
    environment, port = migrated_environment(tmp_path / "data"), free_port()
    large = b"x" * 9_000_000
    with served(environment, tmp_path, port):
        token = first_token(tmp_path)
        ai = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=token, max_retries=0)
        contents = {}
        for content in (b"", b"small", large):
            contents[ai.files.create(file=("a.jsonl", content), purpose="user_data").id] = content
        lines = as_file(*(a_line(str(number)) for number in range(3)))
        file = ai.files.create(file=("in.jsonl", lines), purpose="batch")
        batch = ai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        done = until(lambda: each if (each := ai.batches.retrieve(batch.id)).status == "completed" else None)
        contents[done.output_file_id or ""] = ai.files.content(done.output_file_id or "").content
        signoff(environment, "backup", str(tmp_path / "all.signoff"), "--with-key")
    # restored elsewhere, with the same token
    restored, port = clean_environment(tmp_path / "restored"), free_port()
    signoff(restored, "restore", str(tmp_path / "all.signoff"))
    with served(restored, tmp_path, port):
        ai = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=token, max_retries=0)
        assert ai.batches.retrieve(batch.id) == done
        for file_id, content in contents.items():
            assert ai.files.content(file_id).content == content
        assert {file.id for file in ai.files.list()} == {*contents, file.id}
    # and not without the contents of files, unless that is wanted
    (tmp_path / "restored" / "blobs").rename(tmp_path / "elsewhere")
    code, text = command(restored, tmp_path, "backup", "again.signoff")
    assert (code, f"The contents of {len(contents) + 1} files are missing" in text) == (1, True), text
    assert not (tmp_path / "again.signoff").exists()
    assert "was written and verified" in signoff(restored, "backup", "--skip-missing", str(tmp_path / "again.signoff"))
