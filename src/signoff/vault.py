"""Secrets at rest: upstream keys are sealed with a key that is not in the database."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from signoff.errors import SignoffError


class Unreadable(SignoffError):
    """A sealed value cannot be opened: the secret key is not the one it was sealed with."""

    code = "secret_unreadable"


class Vault:
    """Seals and opens. The first key seals; every key opens."""

    def __init__(self, keys: list[bytes]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

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
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        return path.read_bytes().split()
    except FileNotFoundError:
        pass
    draft.touch(mode=0o600)
    draft.write_bytes(Fernet.generate_key() + b"\n")
    try:
        os.link(draft, path)  # of several processes that start at once, one wins and all use its key
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_bytes().split()
