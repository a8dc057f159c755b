"""The log: its forms, its ids, and one line for what is repeated."""

import json
import subprocess
import sys

import pytest
import structlog

from signoff.infra.logging import RepeatFilter

PROGRAM = """
import logging, structlog
from signoff.infra.logging import JOB_ID, REQUEST_ID, log_to_stderr
log_to_stderr()
log_to_stderr({level!r}, {form!r})
log = structlog.get_logger()
log.debug("fine")
REQUEST_ID.set("r-1")
log.info("plain", bytes=b"x")
JOB_ID.set("j-1")
log.warning("again")
log.warning("again")
log.warning("again", error="another")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed", job_id="j-2")
logging.getLogger("library").warning("theirs %d", 5)
"""


def run(level: str, form: str) -> str:
    """Return what the program writes."""
    program = PROGRAM.format(level=level, form=form)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    ).stderr


def test_each_event_is_a_json_object_with_its_ids() -> None:
    plain, first, other, failed, theirs = (json.loads(line) for line in run("info", "json").splitlines())
    assert (plain["event"], plain["level"], plain["request_id"]) == ("plain", "info", "r-1")
    assert "job_id" not in plain
    assert (first["event"], first["job_id"], first["request_id"]) == ("again", "j-1", "r-1")
    assert other["error"] == "another"
    assert failed["job_id"] == "j-2"
    assert "ZeroDivisionError" in failed["exception"]
    assert (theirs["event"], theirs["logger"], theirs["level"]) == ("theirs 5", "library", "warning")


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["fine", "plain", "again", "again", "failed", "theirs"]),
        ("warning", ["again", "again", "failed", "theirs"]),
        ("error", ["failed", "theirs"]),
    ],
)
def test_less_important_events_are_not_written(level: str, events: list[str]) -> None:
    lines = [line for line in run(level, "text").splitlines() if "[" in line]
    assert [line.partition("] ")[2].split()[0] for line in lines] == events


BROKEN = """
import logging, os, sys, structlog
from signoff.infra.logging import log_to_stderr
log_to_stderr({form!r} and "info", {form!r})
{break_it}
for number in range(3):
    structlog.get_logger().error("failed", number=number)
    logging.getLogger("library").warning("theirs %d", number)
print("went on")
"""


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "break_it",
    [
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 2)",
        "os.close(2)",
        "sys.stderr.close()",
        "sys.stderr = None",
    ],
    ids=["full disk", "no reader", "closed file", "closed stream", "no stream"],
)
def test_a_log_that_cannot_be_written_stops_nothing(form: str, break_it: str) -> None:
    program = BROKEN.format(form=form, break_it=break_it)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout == "went on\n", result.stderr


def test_a_repeated_warning_is_counted_and_written_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    repeats = RepeatFilter()
    assert repeats(None, "warning", {"event": "a"}) == {"event": "a"}
    assert repeats(None, "warning", {"event": "b"}) == {"event": "b"}
    for _ in range(2):
        with pytest.raises(structlog.DropEvent):
            repeats(None, "warning", {"event": "a"})
    assert repeats(None, "info", {"event": "a"}) == {"event": "a"}
    now += 61
    assert repeats(None, "warning", {"event": "a"}) == {"event": "a", "repeated": 2}
    with pytest.raises(structlog.DropEvent):
        repeats(None, "warning", {"event": "a"})
