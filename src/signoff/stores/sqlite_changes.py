"""Change notifications between the processes that use one SQLite file: datagrams to a Unix socket of each process."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

import structlog

from signoff.infra.unix_socket import socket_address
from signoff.store import Topic
from signoff.stores.changes import ANYTHING, ChangeFeed, pack, unpack

# A datagram that is larger is refused by macOS with its default settings.
MAX_DATAGRAM_BYTES = 2000
# Beyond this number, a reader checks everything faster than it reads what has changed.
MAX_CHANGES = 200
CATCH_UP_SECONDS = 0.005
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
        self._socket: socket.socket | None = None
        self._behind = set[Path]()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> bool:
        """Start to receive. Return False if this system has no such sockets, or the folder takes none."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            receiving = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            receiving.setblocking(False)
            with socket_address(self._path) as address:
                receiving.bind(address)
        except OSError as error:
            log.warning("sqlite_socket_failed", folder=str(self._folder), error=repr(error))
            return False
        self._socket = receiving
        asyncio.get_running_loop().add_reader(receiving, self._receive, receiving)
        return True

    def publish(self, items: Iterable[tuple[Topic, str]]) -> None:
        """Send notifications to all other processes."""
        peers = self._peers()
        if not peers:
            return
        changes = dict.fromkeys(items)
        payloads = pack(changes if len(changes) <= MAX_CHANGES else ANYTHING, MAX_DATAGRAM_BYTES)
        for peer in peers:
            self._send(peer, payloads)

    def close(self) -> None:
        """Receive no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._path.unlink(missing_ok=True)

    def _peers(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if path != self._path]
        except OSError:
            return []

    def _send(self, peer: Path, payloads: Iterable[str]) -> None:
        if peer in self._behind or self._socket is None:
            return
        try:
            with socket_address(peer) as address:
                for payload in payloads:
                    self._socket.sendto(payload.encode(), address)
        except BlockingIOError:
            self._behind.add(peer)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(CATCH_UP_SECONDS, self._catch_up)
        except (ConnectionRefusedError, FileNotFoundError):  # that process has ended
            peer.unlink(missing_ok=True)
        except OSError as error:
            log.warning("sqlite_notification_failed", error=repr(error))

    def _catch_up(self) -> None:
        """Send `any` to the processes that have missed something."""
        behind, self._behind, self._timer = self._behind, set[Path](), None
        for peer in behind:
            self._send(peer, pack(ANYTHING, MAX_DATAGRAM_BYTES))

    def _receive(self, receiving: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                for topic, name in unpack(receiving.recv(MAX_DATAGRAM_BYTES + 1).decode(errors="replace")):
                    self._changes.publish(topic, name)
