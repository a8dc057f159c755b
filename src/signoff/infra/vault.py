"""Encryption of stored secrets, such as upstream keys, with keys that are not in the database."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from signoff.core.fingerprint import fingerprint
from signoff.errors import Conflict, SignoffError


class Unreadable(SignoffError):
    """A secret cannot be decrypted: the secret key is not the one it was encrypted with."""

    code = "secret_unreadable"


class Vault:
    """Encrypts and decrypts secrets with Fernet keys. The first key encrypts; every key decrypts.

    `reload_keys` returns the present keys. It is called before each encryption and after each failed decryption, so
    that keys can be rotated without a restart. Raises Unreadable for invalid keys.
    """

    def __init__(self, keys: list[bytes], *, reload_keys: Callable[[], list[bytes]] | None = None) -> None:
        self._reload_keys = reload_keys
        self._keys: list[bytes] = []
        self._derived: dict[bytes, bytes] = {}
        self._use(keys)

    def seal(self, secret: str) -> bytes:
        """Return `secret`, encrypted."""
        self._refresh()
        return self._fernet.encrypt(secret.encode())

    def open(self, sealed: bytes) -> str:
        """Return the secret. Raises Unreadable."""
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
        """Return True if `sealed` was encrypted with the first key."""
        self._refresh()
        try:
            self._first.decrypt(sealed)
        except InvalidToken:
            return False
        return True

    @property
    def fingerprints(self) -> list[str]:
        """Digests that identify the keys without revealing them, in the order of the keys."""
        return [fingerprint(b"signoff key", key) for key in self._keys]

    def derive_key(self, purpose: bytes) -> bytes:
        """Return 32 bytes that only this server can compute, for one `purpose` (HKDF, RFC 5869)."""
        if purpose not in self._derived:
            derivation = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose)
            self._derived[purpose] = derivation.derive(self._keys[0])
        return self._derived[purpose]

    def _use(self, keys: list[bytes]) -> None:
        """Use `keys`; keys used before still decrypt, because this process may hold secrets encrypted with them."""
        keys = [*dict.fromkeys([*keys, *self._keys])]
        try:
            fernets = [Fernet(key) for key in keys]
            self._fernet, self._first = MultiFernet(fernets), fernets[0]
        except ValueError as error:
            message = (
                f"The secret keys are not valid ({error}). Correct `secret_key`, or the file of `secret_key_file`."
            )
            raise Unreadable(message) from None
        self._keys = keys
        self._derived.clear()

    def _refresh(self) -> bool:
        """Return True if the keys have changed. A file that cannot be read changes nothing."""
        if self._reload_keys is None:
            return False
        with contextlib.suppress(OSError, Unreadable):
            keys = self._reload_keys()
            if keys != self._keys[: len(keys)]:
                self._use(keys)
                return True
        return False


def load_or_create_keys(path: Path) -> list[bytes]:
    """Return the keys in a file, one per line, newest first. Create the file, for its owner only, if missing."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _draft_beside(path, [Fernet.generate_key()]) as draft, contextlib.suppress(FileExistsError):
            os.link(draft, path)  # fails if another process has created the file meanwhile
    return load_keys(path)


def load_keys(path: Path) -> list[bytes]:
    """Return the keys in an existing file, newest first. Raises OSError."""
    return path.read_bytes().split()


def add_keys(path: Path, keys: list[bytes]) -> None:
    """Append the keys that the file does not have yet. Raises Unreadable for invalid keys."""
    Vault(keys)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    present = load_keys(path) if path.exists() else []
    _put(path, list(dict.fromkeys([*present, *keys])))


def add_new_key(path: Path) -> None:
    """Append a new key, which decrypts but does not encrypt yet."""
    _put(path, [*load_or_create_keys(path), Fernet.generate_key()])


def put_new_key_first(path: Path, *, added: bool) -> None:
    """Make the key that `add_new_key` appended the first one if `added`, else a new key. The others still decrypt.

    Raises Conflict if there is no added key.
    """
    keys = load_or_create_keys(path)
    if added and len(keys) < 2:
        raise Conflict("No key was added: run `signoff key add` first.")
    _put(path, [keys[-1], *keys[:-1]] if added else [Fernet.generate_key(), *keys])


def drop_old_keys(path: Path) -> int:
    """Remove all keys but the first, and return their number."""
    first, *old = load_or_create_keys(path)
    _put(path, [first])
    return len(old)


@contextlib.contextmanager
def keys_locked(path: Path) -> Generator[None]:
    """Lock the keys against changes by other processes. Raises Conflict if another process holds the lock."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("Another process is changing the keys. Try again later.") from None
        yield
    finally:
        os.close(descriptor)


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
    """Yield the path of a file with these keys, readable by its owner only. It is deleted unless it was renamed."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        try:
            draft.write(b"\n".join(keys) + b"\n")
            draft.flush()
            os.fsync(draft.fileno())
            yield draft.name
        finally:
            Path(draft.name).unlink(missing_ok=True)
