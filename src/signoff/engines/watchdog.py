"""Watchdog of one model: a program that runs the model, and ends its whole process group when its owner ends.

Run as `python -I -S watchdog.py [--lines IN,OUT] [--limits MIB,FILES,NICE] COMMAND…`, in a session of its own. The
owner holds its stdin open; end of file means that the owner has ended, for whatever reason. Its stdout and stderr are
the model's, after a first line with the model's process id, which is also the id of its group. With `--lines`, the
model's stdin and stdout are those two descriptors instead.

One watchdog runs beside every model, so it imports as little as possible.
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
# Signals of this process and of Python, and those that a shell lets programs in the background ignore.
RESET_SIGNALS = (
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGQUIT,
)
SIGNAL_BASE = 128  # added to the number of a signal, this is the exit status of what it ended, as in shells
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STDIN, STDOUT, STDERR = 0, 1, 2


def main(command: list[str]) -> int:
    """Run `command` until it ends or must end; return its exit status, or 128 + N if signal N ended it."""
    lines: list[int] = []
    if command[0] == "--lines":
        lines, command = [int(number) for number in command[1].split(",")], command[2:]
    limits: list[int] = []
    if command[0] == "--limits":
        limits, command = [int(number or 0) for number in command[1].split(",")], command[2:]
    _close_all_but(lines)
    wakeup_fd = _open_wakeup_fd()
    _adopt_orphans()
    model = _start(command, lines, limits)
    status = _watch(model, wakeup_fd)
    if status is None:
        _signal_group(model, signal.SIGTERM)
        status = _wait(model, None, GRACE_SECONDS)
    _signal_group(model, signal.SIGKILL)  # end processes that the model left behind
    status = _wait(model, status, KILL_SECONDS)
    if status is None or status < 0:
        return SIGNAL_BASE - (status or -signal.SIGKILL)
    return status


def _close_all_but(descriptors: list[int]) -> None:
    """Close every descriptor that the owner passed on unintentionally."""
    start = STDERR + 1
    for number in sorted(descriptors):
        os.closerange(start, number)
        start = number + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _open_wakeup_fd() -> int:
    """Return a descriptor that becomes readable after SIGTERM or SIGCHLD. SIGINT is ignored: the owner handles it."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, _ignore_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return read_fd


def _ignore_signal(_number: int, _frame: object) -> None:
    """Ignore the signal. It needs a handler, because only then is it written to the wake-up descriptor."""


def _adopt_orphans() -> None:
    """Become the parent of the model's orphans, because in some containers the first process does not reap them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _start(command: list[str], lines: list[int], limits: list[int]) -> int:
    watchdog = os.getpid()
    model = os.fork()
    if model == 0:
        _exec_model(command, lines, limits, watchdog)
    for number in lines:
        os.close(number)  # otherwise the owner would not see end of file when the model closes its copy
    try:  # noqa: SIM105 - importing contextlib takes half a megabyte
        os.setpgid(model, model)  # also done by the child: the group must exist before either side uses it
    except OSError:
        pass
    return model


def _exec_model(command: list[str], lines: list[int], limits: list[int], watchdog: int) -> None:
    """Turn this process, a child of the watchdog, into the model. Never returns."""
    try:
        os.setpgid(0, 0)
        for number in RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        _die_with(watchdog)
        os.dup2(lines[0] if lines else os.open(os.devnull, os.O_RDONLY), STDIN)
        os.write(STDOUT, b"%d\n" % os.getpid())
        if lines:
            os.dup2(lines[1], STDOUT)
            _close_all_but([])
        if limits:
            _limit(*limits)
        os.execvp(command[0], command)  # noqa: S606 - no shell; all other descriptors close on exec
    except (OSError, ValueError) as error:
        os.write(STDERR, f"cannot run {command[0]}: {error}\n".encode())
    finally:
        os._exit(CANNOT_RUN)


def _limit(memory_mb: int, open_files: int, nice: int) -> None:
    """Set the limits of this process, which its children inherit; 0 leaves a limit unchanged.

    The memory limit counts private writable memory (RLIMIT_DATA, since Linux 4.7). It does not count weights mapped
    from a file, or addresses reserved by a GPU driver.
    """
    import resource

    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    for limit, value in ((kind, memory_mb * 2**20), (resource.RLIMIT_NOFILE, open_files)):
        if value:
            hard = resource.getrlimit(limit)[1]
            soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (soft, soft))
    if nice:
        os.nice(nice)


def _die_with(watchdog: int) -> None:
    """Let Linux kill this process when the watchdog dies first, for example from SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watchdog:
        os._exit(SIGNAL_BASE + signal.SIGKILL)


def _watch(model: int, wakeup_fd: int) -> int | None:
    """Return the status of a model that ended by itself, or None when it must be ended."""
    events = select.poll()
    events.register(STDIN, select.POLLIN)
    events.register(wakeup_fd, select.POLLIN)
    while (status := _reap(model)) is None:
        ready = {descriptor for descriptor, _ in events.poll()}
        if STDIN in ready and _is_at_end(STDIN):
            return None
        if wakeup_fd in ready and signal.SIGTERM in os.read(wakeup_fd, 512):
            return None
    return status


def _reap(model: int) -> int | None:
    """Reap all children that have ended; return the model's status if it is among them."""
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
    """Wait up to `seconds` until the whole group has ended; return the model's status, if it has one."""
    deadline = time.monotonic() + seconds
    while status is None or _signal_group(model, 0):
        ended = _reap(model)
        status = ended if status is None else status
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    return status


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to the group; return False if the group does not exist."""
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
