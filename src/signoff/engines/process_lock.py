"""Ownership of a model's process among the processes of one host, and discovery of its port."""

import fcntl
import hashlib
import os
import re
from pathlib import Path

import msgspec

from signoff.core.model import Model, ProcessLimits


class ProcessLock:
    """Lock on a model's process, held by its owner. The kernel releases it when the owner ends.

    A file beside it publishes the port to the other processes; they touch that file to show that they use the model. A
    model whose command or limits were edited has another lock, so that no request goes to a process with the old ones.
    """

    def __init__(self, run_dir: Path, model: Model) -> None:
        parts = (model.name, *model.command, *(() if model.serve else ("", "lines")))
        if model.limits != ProcessLimits():
            parts = (*parts, "", repr(model.limits))
        digest = hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
        stem = f"{re.sub('[^a-z0-9]+', '-', model.name.lower())[:40]}-{digest[:16]}"
        self._lock_path = run_dir / f"{stem}.lock"
        self._address_path = run_dir / f"{stem}.json"
        self._stop_path = run_dir / f"{stem}.stop"
        self.socket_path = run_dir / f"{digest[:16]}.sock"
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Become the owner; return False if another process is."""
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        self.unpublish()  # files of an owner that crashed
        self.clear_stop_request()
        return True

    def request_stop(self) -> None:
        """Ask the owner to end the process."""
        self._stop_path.touch(mode=0o600)

    def is_stop_requested(self) -> bool:
        """Return True if a process has asked for a stop."""
        return self._stop_path.exists()

    def clear_stop_request(self) -> None:
        """Remove the request to stop: it was carried out, or is obsolete."""
        self._stop_path.unlink(missing_ok=True)

    def publish(self, port: int) -> None:
        """Publish the port at which the process is ready."""
        draft = self._address_path.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(_Address(port, os.getpid())))
        draft.replace(self._address_path)

    def port(self) -> int | None:
        """Return the owner's port, or None if no living owner has published one."""
        try:
            address = msgspec.json.decode(self._address_path.read_bytes(), type=_Address)
        except (OSError, msgspec.DecodeError):
            return None
        return address.port if _is_alive(address.pid) else None

    def touch(self) -> bool:
        """Show that the process is in use; return False if its port is no longer published."""
        try:
            os.utime(self._address_path)
        except FileNotFoundError:
            return False
        return True

    def touched_at(self) -> int | None:
        """Return when the port was last touched or published, None if it is not published.

        The unit is nanoseconds of the file system's clock: compare values only with each other.
        """
        try:
            return self._address_path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def unpublish(self) -> None:
        """Stop publishing the port."""
        self._address_path.unlink(missing_ok=True)

    def release(self) -> None:
        """Give up ownership."""
        if self._descriptor is not None:
            # Closing is not enough: a child between fork and exec has a copy of the descriptor.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None


class _Address(msgspec.Struct):
    port: int
    pid: int


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
