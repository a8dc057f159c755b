"""Change notifications between the processes that use one SQLite file: datagrams to a Unix socket of each process."""

import asyncio
import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

import structlog

from signoff.infra.unix_socket import socket_address
from signoff.store import Topic
from signoff.stores.changes import ANYTHING, ChangeFeed, pack_changes, unpack_changes

# A datagram that is larger is refused by macOS with its default settings.
MAX_DATAGRAM_BYTES = 2000
# Beyond this number, a reader checks everything faster than it reads what has changed.
MAX_CHANGES = 200
MIN_CATCH_UP_SECONDS = 0.005
MAX_CATCH_UP_SECONDS = 1.0
log = structlog.get_logger()


class SqliteChangeFeed:
    """The change notifications that this process exchanges with all others that use the file.

    Each process has a socket in `folder`. Publish what comes from the others to `changes`. A process that is too busy
    to take a datagram gets `any` as soon as it can.
    """

    def __init__(self, folder: Path, changes: ChangeFeed) -> None:
        self._folder = folder
        self._changes = changes
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._receiving: socket.socket | None = None
        self._sending: socket.socket | None = None
        self._behind = set[Path]()
        self._timer: asyncio.TimerHandle | None = None
        self._catch_up_seconds = MIN_CATCH_UP_SECONDS

    def start(self) -> bool:
        """Start to receive. Return False if this system has no such sockets, or the folder takes none."""
        receiving = _new_socket()
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with socket_address(self._path) as address:
                receiving.bind(address)
        except OSError as error:
            receiving.close()
            log.warning("sqlite_socket_failed", folder=str(self._folder), error=repr(error))
            return False
        self._receiving = receiving
        asyncio.get_running_loop().add_reader(receiving, self._receive, receiving)
        return True

    def publish(self, items: Iterable[tuple[Topic, str]]) -> None:
        """Send notifications to all other processes. Never raise: the changes are already committed."""
        try:
            if peers := self._peers():
                changes = dict.fromkeys(items)
                payloads = pack_changes(changes if len(changes) <= MAX_CHANGES else ANYTHING, MAX_DATAGRAM_BYTES)
                for peer in peers:
                    self._send(peer, payloads)
        except Exception as error:  # noqa: BLE001 -- the writer would run committed operations again
            log.warning("sqlite_notification_failed", error=repr(error))

    def close(self) -> None:
        """Send and receive no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sending is not None:
            self._sending.close()
        if self._receiving is not None:
            asyncio.get_running_loop().remove_reader(self._receiving)
            self._receiving.close()
            self._path.unlink(missing_ok=True)

    def _peers(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if path != self._path]
        except OSError:
            return []

    def _send(self, peer: Path, payloads: Iterable[str]) -> None:
        if peer in self._behind:
            return
        self._sending = self._sending or _new_socket()
        try:
            with socket_address(peer) as address:
                for payload in payloads:
                    self._sending.sendto(payload.encode(), address)
        except ConnectionRefusedError:
            _remove_stale_socket(peer)
        except FileNotFoundError:
            pass  # that process has just ended
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ENOBUFS}:
                log.warning("sqlite_notification_failed", socket=str(peer), error=repr(error))
                return
            self._behind.add(peer)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._catch_up_seconds, self._catch_up)

    def _catch_up(self) -> None:
        """Send `any` to the processes that have missed something; wait longer each time that one takes nothing."""
        behind, self._behind, self._timer = self._behind, set[Path](), None
        self._catch_up_seconds = min(2 * self._catch_up_seconds, MAX_CATCH_UP_SECONDS)
        for peer in behind:
            self._send(peer, pack_changes(ANYTHING, MAX_DATAGRAM_BYTES))
        if not self._behind:
            self._catch_up_seconds = MIN_CATCH_UP_SECONDS

    def _receive(self, receiving: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                for topic, name in unpack_changes(receiving.recv(MAX_DATAGRAM_BYTES + 1).decode(errors="replace")):
                    self._changes.publish(topic, name)


def _new_socket() -> socket.socket:
    new = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    new.setblocking(False)
    return new


def _remove_stale_socket(path: Path) -> None:
    """Delete the socket of a process that was killed. Anything else in the folder is not ours."""
    with contextlib.suppress(OSError):
        if path.is_socket():
            path.unlink()
