"""Secrets at rest: upstream keys are sealed with a key that is not in the database."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from signoff.errors import Conflict, SignoffError


class Unreadable(SignoffError):
    """A sealed value cannot be opened: the secret key is not the one it was sealed with."""

    code = "secret_unreadable"


class Vault:
    """Seals and opens. The first key seals; every key opens. Raises Unreadable for keys that are none.

    `look_again` gives the keys as they are now: before a secret is sealed, and where one cannot be opened. So a server
    goes on while they are changed.
    """

    def __init__(self, keys: list[bytes], *, look_again: Callable[[], list[bytes]] | None = None) -> None:
        self._look_again = look_again
        self._keys: list[bytes] = []
        self._use(keys)

    def seal(self, secret: str) -> bytes:
        """The sealed form of `secret`."""
        self._refresh()
        return self._fernet.encrypt(secret.encode())

    def open(self, sealed: bytes) -> str:
        """The secret. Raises Unreadable."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken:
            if not self._refresh():
                raise Unreadable from None
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken:
            raise Unreadable from None

    def is_newest(self, sealed: bytes) -> bool:
        """Whether it was sealed with the key that seals now."""
        self._refresh()
        try:
            self._first.decrypt(sealed)
        except InvalidToken:
            return False
        return True

    def _use(self, keys: list[bytes]) -> None:
        """These, and those that were known before still open: this process may hold what it sealed with them."""
        keys = [*dict.fromkeys([*keys, *self._keys])]
        try:
            fernets = [Fernet(key) for key in keys]
            self._fernet, self._first = MultiFernet(fernets), fernets[0]
        except (ValueError, IndexError) as error:
            raise Unreadable(f"The secret keys cannot be used: {error}") from None
        self._keys = keys

    def _refresh(self) -> bool:
        """Whether there are other keys now. A file that cannot be used at this moment changes nothing."""
        if self._look_again is None:
            return False
        with contextlib.suppress(OSError, Unreadable):
            keys = self._look_again()
            if keys != self._keys[: len(keys)]:
                self._use(keys)
                return True
        return False


def keys_in(path: Path) -> list[bytes]:
    """The keys of a file, one a line, the newest first; the file is made, for its owner alone, if there is none."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _draft_beside(path, [Fernet.generate_key()]) as draft, contextlib.suppress(FileExistsError):
            os.link(draft, path)  # of several processes that start at once, one wins
    return path.read_bytes().split()


def add_keys(path: Path, keys: list[bytes]) -> None:
    """Adds the keys that the file does not have yet, behind its own. Raises Unreadable for keys that are none."""
    Vault(keys)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = path.read_bytes().split() if path.exists() else []
    _put(path, list(dict.fromkeys([*known, *keys])))


def existing_keys(path: Path) -> list[bytes]:
    """The keys of a file that is there. Raises OSError."""
    return path.read_bytes().split()


def add_new_key(path: Path) -> None:
    """A new key behind the others: it opens, and seals nothing yet."""
    _put(path, [*keys_in(path), Fernet.generate_key()])


def put_new_key_first(path: Path, *, added: bool) -> None:
    """A new key, or the one that was `added` before, is the one that seals; the others go on to open."""
    known = keys_in(path)
    if added and len(known) < 2:
        raise Conflict("No key was added: run signoff key add first.")
    _put(path, [known[-1], *known[:-1]] if added else [Fernet.generate_key(), *known])


def drop_old_keys(path: Path) -> int:
    """Forgets all keys but the one that seals, and says how many."""
    first, *old = keys_in(path)
    _put(path, [first])
    return len(old)


@contextlib.contextmanager
def keys_locked(path: Path) -> Generator[None]:
    """Nobody else changes the keys meanwhile. Raises Conflict where somebody does."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Conflict("Somebody else changes the keys just now.") from None
    finally:
        os.close(lock)


def _put(path: Path, keys: list[bytes]) -> None:
    with _draft_beside(path, keys) as draft:
        Path(draft).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _draft_beside(path: Path, keys: list[bytes]) -> Generator[str]:
    """The name of a file with these keys, for its owner alone; it goes with the block, unless it was renamed."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        try:
            draft.write(b"\n".join(keys) + b"\n")
            draft.flush()
            os.fsync(draft.fileno())
            yield draft.name
        finally:
            Path(draft.name).unlink(missing_ok=True)
