"""The watchdog: a model and all its descendants end with their owner, however the owner ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fakes.http_server import LIMIT_SECONDS
from fakes.programs import HTTP_MODEL, alive, starts, wait_until
from signoff.engines import watchdog

WATCHDOG = watchdog.__file__
OWNER_SCRIPT = """
import subprocess, sys, time
print(subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def watchdog_command(*command: str) -> list[str]:
    return [sys.executable, "-I", "-S", WATCHDOG, *command]


def model_command(journal: Path, *options: str) -> list[str]:
    return watchdog_command(sys.executable, "-S", str(HTTP_MODEL), "--port", "0", "--journal", str(journal), *options)


def start(*command: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True
    )


def started_pids(journal: Path) -> list[int]:
    wait_until(lambda: starts(journal))
    [pids] = starts(journal)
    return pids


@pytest.mark.parametrize("options", [["--grandchild"], ["--grandchild", "--stubborn"]], ids=["polite", "stubborn"])
def test_the_whole_process_group_ends_when_its_owner_is_killed(journal: Path, options: list[str]) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER_SCRIPT, *model_command(journal, *options)], stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    pids = [int(owner.stdout.readline()), *started_pids(journal)]
    assert alive(pids) == pids
    owner.kill()
    owner.communicate()
    wait_until(lambda: not alive(pids), seconds=LIMIT_SECONDS)


def test_a_model_does_not_inherit_the_pipe_of_another(tmp_path: Path, journal: Path) -> None:
    # A model that inherited the pipe of the other one would keep that model alive.
    other = tmp_path / "other"
    first, second = start(*model_command(journal)), start(*model_command(other))
    [first_pid], [second_pid] = started_pids(journal), started_pids(other)
    assert first.stdin is not None
    first.stdin.close()
    first.wait(LIMIT_SECONDS)
    assert alive([first_pid, second_pid]) == [second_pid]
    second.communicate()
    assert not alive([second_pid])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_model_never_outlives_its_watchdog(journal: Path, number: signal.Signals) -> None:
    process = start(*model_command(journal))
    pids = started_pids(journal)
    process.send_signal(number)
    process.communicate()
    wait_until(lambda: not alive(pids), seconds=LIMIT_SECONDS)


def test_a_watchdog_ignores_an_interrupt(journal: Path) -> None:
    process = start(*model_command(journal))
    pids = started_pids(journal)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    assert alive(pids) == pids
    process.communicate()


def test_a_model_that_ignores_sigterm_is_killed_after_the_grace_period(journal: Path) -> None:
    process = start(*model_command(journal, "--stubborn"))
    pids = started_pids(journal)
    began = time.monotonic()
    process.communicate()  # this closes its stdin
    took_seconds = time.monotonic() - began
    assert watchdog.GRACE_SECONDS <= took_seconds < watchdog.GRACE_SECONDS + LIMIT_SECONDS
    assert not alive(pids)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_model_that_exits_leaves_no_descendants(journal: Path) -> None:
    process = start(*model_command(journal, "--grandchild", "--crash", "7"))
    assert process.wait(LIMIT_SECONDS) == 7
    assert len(started_pids(journal)) == 2
    wait_until(lambda: not alive(started_pids(journal)))


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 9"], 9),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["/there/is/no/such/program"], 127),
    ],
)
def test_the_watchdog_exits_with_the_status_of_the_model(command: list[str], status: int) -> None:
    process = start(*watchdog_command(*command))
    assert process.wait(LIMIT_SECONDS) == status


def test_the_first_line_is_the_models_process_id() -> None:
    process = start(*watchdog_command("sh", "-c", "echo $$; ps -o pgid= -p $$; cat; echo end"), stdout=subprocess.PIPE)
    assert process.stdout is not None
    first_line, pid, group, end = process.stdout.read().split()
    assert first_line == pid == group
    assert end == b"end"  # its stdin was empty
    process.communicate()


def test_a_model_starts_with_default_signals_and_descriptors() -> None:
    script = "grep -E 'SigBlk|SigIgn' /proc/self/status; ls /proc/self/fd | tr '\\n' ' '"
    process = start(*watchdog_command("sh", "-c", script), stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = process.stdout.read().decode().splitlines()
    process.communicate()
    # Without real-time signals, as the C library reserves some, and SIGHUP, which stays ignored under nohup.
    ordinary = (1 << 31) - 1 - (1 << (signal.SIGHUP - 1))
    assert [int(line.split()[1], 16) & ordinary for line in lines[1:3]] == [0, 0]
    assert lines[3].split() == ["0", "1", "2", "3"]  # the last is the folder that `ls` reads
