"""Batches whose processes are killed on the way: no request is lost, and none is answered twice."""

from __future__ import annotations

import json
import signal
import sqlite3
from pathlib import Path
from typing import Any

import openai
import pytest

from support.batches import CHAT
from support.processes import ask, first_token, free_port, migrated_environment, served, until

WAIT_SECONDS = 900.0


def lines_of(count: int) -> list[dict[str, Any]]:
    """Return requests for a prompt with two placeholders; each hundredth lacks its arguments."""
    texts = [
        "no arguments" if number % 100 == 7 else json.dumps({"a": f"n{number}", "b": "x"}) for number in range(count)
    ]
    return [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": "greet", "messages": [{"role": "user", "content": text}]},
        }
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize(("count", "kills"), [(600, 3), pytest.param(50_000, 5, marks=pytest.mark.long)])
def test_killed_processes_repeat_and_lose_no_line(count: int, kills: int, tmp_path: Path) -> None:
    environment = migrated_environment(tmp_path / "data", SIGNOFF_LATER_ATTEMPTS="20", SIGNOFF_SWEEP_SECONDS="0.2")
    lines, port = lines_of(count), free_port()
    with served(environment, tmp_path, port) as server:
        ask(
            port, "/api/prompts", first_token(tmp_path), {"name": "greet", "body": "Greet {a} and {b}", "model": "echo"}
        )
        ai = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=first_token(tmp_path), max_retries=0)
        content = "\n".join(map(json.dumps, lines)).encode()
        file = ai.files.create(file=("in.jsonl", content), purpose="batch")
        batch = ai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        # given a server that is killed in the middle of the batch, each time with more of it done
        kill_at(server, ai, batch.id, 0)
    for kill in range(1, kills):
        with served(environment, tmp_path, port) as server:
            kill_at(server, ai, batch.id, count * kill // (kills + 1))
    # when the next one goes on to the end
    with served(environment, tmp_path, port):
        done = until(lambda: ended(ai, batch.id), WAIT_SECONDS)
        answers, errors = (read(ai, file_id) for file_id in (done.output_file_id, done.error_file_id))
    # then each line has one result, in the order of the file
    bad = [line["custom_id"] for number, line in enumerate(lines) if number % 100 == 7]
    good = [line["custom_id"] for number, line in enumerate(lines) if number % 100 != 7]
    assert done.status == "completed"
    assert [line["custom_id"] for line in errors] == bad
    assert [line["custom_id"] for line in answers] == good
    for line in answers:
        text = line["response"]["body"]["choices"][0]["message"]["content"]
        assert text == f"Greet n{line['custom_id'].removeprefix('line-')} and x"
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": count, "completed": len(good), "failed": len(bad)}
    with sqlite3.connect(tmp_path / "data" / "signoff.db") as database:
        [(jobs, places)] = database.execute("SELECT count(*), count(DISTINCT batch_line) FROM jobs")
        [(succeeded,)] = database.execute("SELECT count(*) FROM events WHERE verb = 'succeed'")
    assert (jobs, places, succeeded) == (count, count, len(good))


def kill_at(server: Any, ai: openai.OpenAI, batch_id: str, completed: int) -> None:
    """Kill the server once so many requests are completed, or the batch has ended."""

    def has_come_far() -> bool | None:
        batch = ai.batches.retrieve(batch_id)
        assert batch.request_counts is not None
        return True if batch.request_counts.completed > completed or batch.status == "completed" else None

    until(has_come_far, WAIT_SECONDS)
    server.send_signal(signal.SIGKILL)
    server.wait()


def ended(ai: openai.OpenAI, batch_id: str) -> Any:
    batch = ai.batches.retrieve(batch_id)
    return batch if batch.status in {"completed", "failed", "expired", "cancelled"} else None


def read(ai: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in ai.files.content(file_id).text.splitlines()]
