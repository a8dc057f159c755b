"""Sizes of the files of each user, with the uploads to this process that have not ended, which have a maximum."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from signoff.errors import FilesTooLarge


class _UserFiles:
    """The files of one user, while some are being uploaded to this process."""

    def __init__(self) -> None:
        self.stored_bytes = 0
        self.uploads = set["UploadSize"]()


class UploadSize:
    """The bytes of a file that is being uploaded."""

    def __init__(self, files: _UserFiles, max_bytes: int) -> None:
        self._files = files
        self._max_bytes = max_bytes
        self.size_bytes = 0
        """Number of bytes so far."""

    def add(self, size_bytes: int) -> None:
        """Count the next piece of the file. Raises FilesTooLarge."""
        self.size_bytes += size_bytes
        uploading_bytes = sum(upload.size_bytes for upload in self._files.uploads)
        if self._files.stored_bytes + uploading_bytes > self._max_bytes:
            raise FilesTooLarge(
                f"Your files must have at most {self._max_bytes} bytes together (setting `max_stored_bytes`); "
                "delete some of them."
            )


class FileSizes:
    """The sizes of the files of users.

    Each process counts the uploads that it takes. So uploads to several processes at the same time may exceed the
    maximum together, by at most the maximum for each process.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._users = dict[int, _UserFiles]()

    @asynccontextmanager
    async def counting(self, user_id: int, load: Callable[[int], Awaitable[int]]) -> AsyncGenerator[UploadSize]:
        """Yield the size of a new file; `load` returns the bytes of all stored files of the user.

        The file counts as stored if the context ends without an exception.
        """
        files = self._users.setdefault(user_id, _UserFiles())
        upload = UploadSize(files, self._max_bytes)
        files.uploads.add(upload)
        try:
            files.stored_bytes = await load(user_id)
            yield upload
            files.stored_bytes += upload.size_bytes
        finally:
            files.uploads.discard(upload)
            if not files.uploads:
                self._users.pop(user_id, None)
