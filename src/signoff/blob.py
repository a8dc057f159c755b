"""Interface of a blob store: the contents of files, by name, outside the database."""

import re
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

# Segments have no other characters, so a name has one form in every store, and leads to no other folder.
BLOB_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class BlobWriter(Protocol):
    """A blob that is being written."""

    @property
    def size_bytes(self) -> int:
        """Number of bytes that were written so far."""
        ...

    async def write(self, data: bytes) -> None:
        """Append `data`."""
        ...


class Blobs(Protocol):
    """Blobs by name. A name is one or more segments of letters, digits, `-`, `_` and `.`, joined by `/`.

    A blob appears under its name when it is complete; a blob of the same name is replaced at that moment. Any method
    may raise `Overloaded` if the store is unavailable, and `BlobMissing` where that is said.
    """

    def write(self, name: str) -> AbstractAsyncContextManager[BlobWriter]:
        """Return a context with the writer of a blob.

        The blob is complete and durable when the context ends; an exception in the context discards it.
        """
        ...

    def read(self, name: str, *, offset: int = 0) -> AsyncGenerator[bytes]:
        """Yield the contents from byte `offset` on, in pieces of at most a few megabytes.

        Close the generator if it is not read to its end. Raises BlobMissing.
        """
        ...

    async def delete(self, name: str) -> None:
        """Delete a blob; do nothing if there is none of this name."""
        ...

    async def purge_partial(self, before: int) -> int:
        """Delete incomplete blobs of writers that were killed before `before`; return how many.

        `before` is in microseconds since 1970, UTC. A store whose bucket has a rule for this deletes nothing here.
        """
        ...

    async def check(self) -> str:
        """Write, read and delete a small blob, and return a sentence on the store. Raises Overloaded with a remedy."""
        ...
