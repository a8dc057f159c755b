"""Pipeline runs whose process is killed: another process finishes them and repeats no finished step."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from fakes.echoing import REPLY, EchoingModel
from support.processes import ask, first_token, free_port, migrated_environment, served, signoff, until

STEPS = 5


@pytest.mark.parametrize("door", ["jobs", "call"])
def test_a_run_of_a_killed_process_ends_and_repeats_no_finished_step(tmp_path: Path, door: str) -> None:
    environment, port = migrated_environment(tmp_path / "data"), free_port()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(EchoingModel()) as upstream:
        signoff(environment, "model", "add", "m", "--kind", "openai", "--url", upstream.url, "--default")
        # given a run of five steps, of which two are done and one is at the model
        with served(environment, tmp_path, port) as server:
            token = first_token(tmp_path)
            for number in range(STEPS):
                ask(port, "/api/prompts", token, {"name": f"p{number}", "body": f"step {number}: {{x}}"})
            ask(port, "/api/pipelines", token, {"name": "five", "body": "p4(x=p3(x=p2(x=p1(x=p0(x)))))"})
            upstream.closes_gate_at = 3
            job_id = start_run(port, token, door)
            until(lambda: len(upstream.prompts) == 3 or None)
            answered = list(upstream.answered)
            # when its process is killed, and another one started
            server.send_signal(signal.SIGKILL)
            server.wait()
        portal.call(upstream.gate.set)
        with served(environment, tmp_path, port):
            job = until(lambda: ended_job(port, token, job_id))
            # then the run ends with the same answer as without the kill
            content = "x"
            for number in range(STEPS):
                content = f"{REPLY}step {number}: {content}"
            assert (job["status"], job["response"]) == ("success", content)
            # and each step whose answer was stored was sent to the model once
            times = upstream.times()
            log = ask(port, f"/api/jobs/{job_id}/run", token)["data"]
            assert [entry["state"] for entry in log] == ["done"] * STEPS
            assert [times[prompt] for prompt in answered] == [1] * len(answered)
            assert sum(times.values()) <= STEPS + 1, "but for the one that was asked when it was killed"


def start_run(port: int, token: str, door: str) -> str:
    """Start the run through `door`; return the id of its job."""
    if door == "jobs":
        return ask(port, "/api/jobs", token, {"target": "five", "path": "/predict", "body": {"x": "x"}})["job_id"]
    import threading

    body = {"pipeline_name": "five", "args": {"x": "x"}}
    threading.Thread(target=_call_pipeline, args=(port, token, body), daemon=True).start()
    return until(lambda: next((job["job_id"] for job in ask(port, "/api/jobs", token)["data"]), None))


def _call_pipeline(port: int, token: str, body: Any) -> None:
    """Call the pipeline, and ignore the broken connection when the server is killed."""
    import contextlib

    with contextlib.suppress(OSError):
        ask(port, "/api/pipeline/call", token, body)


def ended_job(port: int, token: str, job_id: str) -> dict[str, Any] | None:
    """Return the job if it has ended; else None."""
    job = ask(port, f"/api/jobs/{job_id}", token)
    return job if job["status"] in {"success", "fail"} else None
