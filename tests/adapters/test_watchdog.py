"""The warden: a model and all its descendants end with their owner, however he ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fakes.http_server import LIMIT_SECONDS
from fakes.programs import HTTP_MODEL, alive, starts, wait_until
from signoff.engines import watchdog

WARDEN = watchdog.__file__
OWNER = """
import subprocess, sys, time
print(subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def warded(*command: str) -> list[str]:
    return [sys.executable, "-I", "-S", WARDEN, *command]


def model(journal: Path, *options: str) -> list[str]:
    return warded(sys.executable, "-S", str(HTTP_MODEL), "--port", "0", "--journal", str(journal), *options)


def start(*command: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True
    )


def started(journal: Path) -> list[int]:
    wait_until(lambda: starts(journal))
    [pids] = starts(journal)
    return pids


@pytest.mark.parametrize("options", [["--grandchild"], ["--grandchild", "--stubborn"]], ids=["polite", "stubborn"])
def test_a_killed_owner_takes_the_whole_group_along(journal: Path, options: list[str]) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, *model(journal, *options)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pids = [int(owner.stdout.readline()), *started(journal)]
    assert alive(pids) == pids
    owner.kill()
    owner.communicate()
    wait_until(lambda: not alive(pids), seconds=5)


def test_one_owner_of_two_models_holds_neither_by_accident(tmp_path: Path, journal: Path) -> None:
    """A model that inherited the other's pipe would keep that one alive."""
    other = tmp_path / "other"
    first, second = start(*model(journal)), start(*model(other))
    [one], [another] = started(journal), started(other)
    assert first.stdin is not None
    first.stdin.close()
    first.wait(5)
    assert alive([one, another]) == [another]
    second.communicate()
    assert not alive([another])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_model_never_outlives_its_warden(journal: Path, number: signal.Signals) -> None:
    ward = start(*model(journal))
    pids = started(journal)
    ward.send_signal(number)
    ward.communicate()
    wait_until(lambda: not alive(pids), seconds=5)


def test_an_interrupt_is_for_the_owner_to_judge(journal: Path) -> None:
    ward = start(*model(journal))
    pids = started(journal)
    ward.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        ward.wait(0.3)
    assert alive(pids) == pids
    ward.communicate()


def test_a_model_that_ignores_sigterm_is_killed_after_the_grace(journal: Path) -> None:
    ward = start(*model(journal, "--stubborn"))
    pids = started(journal)
    began = time.monotonic()
    ward.communicate()  # which closes its stdin
    took_seconds = time.monotonic() - began
    assert watchdog.GRACE_SECONDS <= took_seconds < watchdog.GRACE_SECONDS + LIMIT_SECONDS
    assert not alive(pids)
    assert ward.returncode == 128 + signal.SIGKILL


def test_a_model_that_leaves_by_itself_leaves_nobody_behind(journal: Path) -> None:
    ward = start(*model(journal, "--grandchild", "--crash", "7"))
    assert ward.wait(5) == 7
    assert len(started(journal)) == 2
    wait_until(lambda: not alive(started(journal)))


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 9"], 9),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["/there/is/no/such/program"], 127),
    ],
)
def test_the_status_is_the_models(command: list[str], status: int) -> None:
    ward = start(*warded(*command))
    assert ward.wait(5) == status


def test_the_first_line_is_the_models_process_id() -> None:
    ward = start(*warded("sh", "-c", "echo $$; ps -o pgid= -p $$; cat; echo end"), stdout=subprocess.PIPE)
    assert ward.stdout is not None
    told, own, group, end = ward.stdout.read().split()
    assert told == own == group
    assert end == b"end"  # its stdin was empty
    ward.communicate()


def test_a_model_begins_with_signals_and_descriptors_as_programs_expect_them() -> None:
    script = "grep -E 'SigBlk|SigIgn' /proc/self/status; ls /proc/self/fd | tr '\\n' ' '"
    ward = start(*warded("sh", "-c", script), stdout=subprocess.PIPE)
    assert ward.stdout is not None
    lines = ward.stdout.read().decode().splitlines()
    ward.communicate()
    # Above are the real-time ones, of which the C library keeps some for itself. SIGHUP stays ignored under nohup.
    ordinary = (1 << 31) - 1 - (1 << (signal.SIGHUP - 1))
    assert [int(line.split()[1], 16) & ordinary for line in lines[1:3]] == [0, 0]
    assert lines[3].split() == ["0", "1", "2", "3"]  # the last is the folder that `ls` reads
