"""Hashes of passwords, made in a thread of their own so that they delay nothing else in the process."""

import asyncio
import contextlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import argon2
from argon2.exceptions import Argon2Error, InvalidHashError

from signoff.errors import LimitReached

# Hashes that are made or wait at the same time. One takes about 0.2 s and 64 MiB.
MAX_HASHES = 8
RETRY_SECONDS = 2.0


class PasswordHasher:
    """Argon2id hashes of passwords, one at a time."""

    def __init__(self) -> None:
        self._argon2 = argon2.PasswordHasher(parallelism=1)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="argon2")
        self._count = 0
        self._placeholder: str | None = None

    @contextlib.contextmanager
    def slot(self) -> Generator[None]:
        """Admit the block, which makes hashes, unless MAX_HASHES others run or wait. Raises LimitReached."""
        if self._count >= MAX_HASHES:
            message = "Too many people are signing in now; try again in some seconds."
            raise LimitReached(message, retry_after_seconds=RETRY_SECONDS)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    async def hash(self, password: str) -> str:
        """Return a hash of `password`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._argon2.hash, password)

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Return True if the hash is that of `password`; without a hash, take the same time and return False."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._verify, password_hash, password)

    def is_outdated(self, password_hash: str) -> bool:
        """Return True if a hash was made with other parameters than today's."""
        return self._argon2.check_needs_rehash(password_hash)

    def close(self) -> None:
        """Make no more hashes."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password_hash: str | None, password: str) -> bool:
        # Made at the first call in any case, whose time would otherwise tell whether the user exists.
        self._placeholder = self._placeholder or self._argon2.hash("no user has this password")
        try:
            is_right = self._argon2.verify(password_hash or self._placeholder, password)
        except (Argon2Error, InvalidHashError):
            return False
        return is_right and password_hash is not None
