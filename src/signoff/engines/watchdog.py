"""A program that runs one model and outlives its owner just long enough to end it.

Run as `python -I -S watchdog.py [--lines IN,OUT] [--limits MIB,FILES,NICE] COMMAND…`, in a session of its own. Its
stdin is held open by the owner and tells only of the owner's end, however that came. Its stdout and stderr are the
model's, after one line: the model's process id, which is also its group's. With `--lines`, the model's stdin and stdout
are those two descriptors instead.
There is one beside every model, so it imports next to nothing.
"""

import ctypes
import os
import select
import signal
import sys
import time

GRACE_SECONDS = 3
KILL_SECONDS = 1
POLL_SECONDS = 0.02
CANNOT_RUN = 127
KILLED = 128
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STDIN, STDOUT, STDERR = 0, 1, 2


def main(command: list[str]) -> int:
    """Run `command` until it ends or has to; return its exit status, or 128 + N where signal N ended it."""
    lines: list[int] = []
    if command[0] == "--lines":
        lines, command = [int(number) for number in command[1].split(",")], command[2:]
    limits: list[int] = []
    if command[0] == "--limits":
        limits, command = [int(number or 0) for number in command[1].split(",")], command[2:]
    _close_all_but(lines)
    bell = _bell()
    _adopt_orphans()
    model = _start(command, lines, limits)
    status = _watch(model, bell)
    if status is None:
        _tell_group(model, signal.SIGTERM)
        status = _wait(model, None, GRACE_SECONDS)
    _tell_group(model, signal.SIGKILL)  # what a model leaves behind ends with it
    status = _wait(model, status, KILL_SECONDS)
    if status is None or status < 0:
        return KILLED - (status or -signal.SIGKILL)
    return status


def _close_all_but(kept: list[int]) -> None:
    """Close what the owner may have handed down by mistake."""
    start = STDERR + 1
    for number in sorted(kept):
        os.closerange(start, number)
        start = number + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _bell() -> int:
    """Return a descriptor that can be read after each signal that matters; an interrupt is for the owner to judge."""
    bell, ringer = os.pipe()
    os.set_blocking(ringer, False)
    signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, _ring)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return bell


def _ring(_number: int, _frame: object) -> None:
    """Do nothing: a signal with a handler rings the bell."""


def _adopt_orphans() -> None:
    """Become the parent of the model's orphans, since not every container has a first process that reaps them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _start(command: list[str], lines: list[int], limits: list[int]) -> int:
    warden = os.getpid()
    model = os.fork()
    if model == 0:
        _become(command, lines, limits, warden)
    for number in lines:
        os.close(number)  # else nobody would see that the model closed its own
    try:  # noqa: SIM105 - contextlib would be half a megabyte
        os.setpgid(model, model)  # both sides do it: the group is there for whoever needs it first
    except OSError:
        pass
    return model


def _become(command: list[str], lines: list[int], limits: list[int], warden: int) -> None:
    """Turn this process, the warden's child, into the model; never returns."""
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        _die_with(warden)
        os.dup2(lines[0] if lines else os.open(os.devnull, os.O_RDONLY), STDIN)
        os.write(STDOUT, b"%d\n" % os.getpid())
        if lines:
            os.dup2(lines[1], STDOUT)
            _close_all_but([])
        if limits:
            _limit(*limits)
        os.execvp(command[0], command)  # noqa: S606 - no shell; every other descriptor of ours closes here
    except (OSError, ValueError) as error:
        os.write(STDERR, f"cannot run {command[0]}: {error}\n".encode())
    finally:
        os._exit(CANNOT_RUN)


def _limit(memory_mb: int, open_files: int, nice: int) -> None:
    """Take what this process, and each of those that it starts, may have at most; 0 leaves it as it is.

    Memory is what it writes to of its own (RLIMIT_DATA, since Linux 4.7): weights that are mapped from a file, and
    addresses that a graphics card reserves, are none.
    """
    import resource

    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    for limit, value in ((kind, memory_mb * 2**20), (resource.RLIMIT_NOFILE, open_files)):
        if value:
            hard = resource.getrlimit(limit)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (most, most))
    if nice:
        os.nice(nice)


def _die_with(warden: int) -> None:
    """Ask Linux to kill this process when its warden dies first, by a signal that nobody can handle."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != warden:
        os._exit(KILLED + signal.SIGKILL)


def _watch(model: int, bell: int) -> int | None:
    """Return the status of a model that ended by itself, or None when it has to end."""
    events = select.poll()
    events.register(STDIN, select.POLLIN)
    events.register(bell, select.POLLIN)
    while (status := _reap(model)) is None:
        ready = {descriptor for descriptor, _ in events.poll()}
        if STDIN in ready and _is_at_end(STDIN):
            return None
        if bell in ready and signal.SIGTERM in os.read(bell, 512):
            return None
    return status


def _reap(model: int) -> int | None:
    """Take note of all children that have ended; return the model's status when it is one of them."""
    status = None
    try:
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            if child[0] == model:
                status = os.waitstatus_to_exitcode(child[1])
    except ChildProcessError:
        pass
    return status


def _is_at_end(descriptor: int) -> bool:
    try:
        return not os.read(descriptor, 512)
    except OSError:
        return True


def _wait(model: int, status: int | None, seconds: float) -> int | None:
    """Wait until the whole group has ended, `seconds` at most; return the model's status, once it has one."""
    deadline = time.monotonic() + seconds
    while status is None or _tell_group(model, 0):
        ended = _reap(model)
        status = ended if status is None else status
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    return status


def _tell_group(group: int, number: int) -> bool:
    """Send the group a signal; return whether there is such a group."""
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
