"""Secrets at rest: upstream keys are sealed with a key that is not in the database."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from signoff.errors import SignoffError


class Unreadable(SignoffError):
    """A sealed value cannot be opened: the secret key is not the one it was sealed with."""

    code = "secret_unreadable"


class Vault:
    """Seals and opens. The first key seals; every key opens. Raises Unreadable for keys that are none."""

    def __init__(self, keys: list[bytes]) -> None:
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError as error:
            raise Unreadable(f"The secret keys cannot be used: {error}") from None

    def seal(self, secret: str) -> bytes:
        """The sealed form of `secret`."""
        return self._fernet.encrypt(secret.encode())

    def open(self, sealed: bytes) -> str:
        """The secret. Raises Unreadable."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken:
            raise Unreadable from None


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
    with _draft_beside(path, list(dict.fromkeys([*known, *keys]))) as draft:
        Path(draft).replace(path)


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
