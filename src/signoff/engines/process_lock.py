"""Who on this host owns a model's process, and how everybody else finds it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from pathlib import Path

import msgspec

from signoff.core.model import Model, ProcessLimits


class ProcessLock:
    """Who on this host owns a model's process: whoever holds a lock, which the kernel frees at his end.

    A file beside it tells the others the port; its time of change tells the owner that they use it. A model whose
    command was edited is another claim, so nobody is sent to a process that runs the old one.
    """

    def __init__(self, run_dir: Path, model: Model) -> None:
        words = (model.name, *model.command, *(() if model.serve else ("", "lines")))
        if model.limits != ProcessLimits():
            words = (*words, "", repr(model.limits))
        digest = hashlib.sha256("\0".join(words).encode(errors="surrogatepass")).hexdigest()
        stem = f"{re.sub('[^a-z0-9]+', '-', model.name.lower())[:40]}-{digest[:16]}"
        self._lock_path = run_dir / f"{stem}.lock"
        self._card_path = run_dir / f"{stem}.json"
        self._stop_path = run_dir / f"{stem}.stop"
        self.socket_path = run_dir / f"{digest[:16]}.sock"
        self._lock: int | None = None

    def take(self) -> bool:
        """Become the owner, unless somebody is."""
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        self.withdraw()  # what a lost owner left
        self.forget_the_stop()
        return True

    def ask_to_stop(self) -> None:
        """Tell the owner, whoever that is, to end the process."""
        self._stop_path.touch(mode=0o600)

    def is_told_to_stop(self) -> bool:
        """Whether somebody did."""
        return self._stop_path.exists()

    def forget_the_stop(self) -> None:
        """It was done, or is not wanted any more."""
        self._stop_path.unlink(missing_ok=True)

    def publish(self, port: int) -> None:
        """Tell the others where the process is ready."""
        draft = self._card_path.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(_Address(port, os.getpid())))
        draft.replace(self._card_path)

    def port(self) -> int | None:
        """The owner's port, or None where there is no owner alive, or none that is ready."""
        try:
            card = msgspec.json.decode(self._card_path.read_bytes(), type=_Address)
        except (OSError, msgspec.DecodeError):
            return None
        return card.port if _is_alive(card.pid) else None

    def touch(self) -> bool:
        """Show that the process is in use; whether its owner still offers it."""
        try:
            os.utime(self._card_path)
        except FileNotFoundError:
            return False
        return True

    def touched_at(self) -> int | None:
        """When somebody last did, in nanoseconds of the file system's clock: good for telling changes, no more."""
        try:
            return self._card_path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def withdraw(self) -> None:
        """Send nobody there any more."""
        self._card_path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let somebody else be the owner."""
        if self._lock is not None:
            # Closing alone would not do: a child between its fork and its exec has a copy.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None


class _Address(msgspec.Struct):
    port: int
    pid: int


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
