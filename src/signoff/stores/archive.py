"""A backup's file: a gzipped tar of plain files, the manifest last; written aside and renamed, read within bounds.

Python's own reader of tar files takes whatever an extended header asks for into memory. Here every header is read by
itself, and what is not a plain file is refused. Nothing is ever written under a name that an archive gives.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tarfile
import tempfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

import msgspec

from signoff.errors import SignoffError

FORMAT = 1
MANIFEST, KEY = "manifest.json", "secret.key"
LEVEL = 1  # under half the time of gzip's own choice, for a fifth more bytes
BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 1024 * 1024
MANIFEST_LIMIT_BYTES = 32 * 1024 * 1024
KEY_LIMIT_BYTES = 64 * 1024
MEMBERS_LIMIT = 200_000
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
GZIP = b"\x1f\x8b"


class BadBackup(SignoffError):
    """This file cannot be restored from, or not here."""

    code = "bad_backup"


class TableSummary(msgspec.Struct, frozen=True):
    """What a backup holds of one table."""

    columns: tuple[str, ...]
    rows: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says of itself; `members` are the SHA-256 of all its other files."""

    format: int
    signoff: str
    revision: str
    made_at: str
    tables: dict[str, TableSummary]
    members: dict[str, str]

    def rows(self, table: str) -> int:
        """How many of `table` there are in it."""
        return self.tables[table].rows if table in self.tables else 0


class _Format(msgspec.Struct, frozen=True):
    format: int


class ArchiveContents(msgspec.Struct, frozen=True):
    """What was found in a backup that is whole."""

    manifest: Manifest
    key: bytes | None


class ArchiveWriter:
    """A backup that is being written."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self.members: dict[str, str] = {}

    def add(self, name: str, data: bytes | bytearray) -> None:
        """One file more."""
        self.members[name] = hashlib.sha256(data).hexdigest()
        self._write(name, data)

    def finish(self, manifest: Manifest) -> None:
        """Nothing comes after this."""
        self._write(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        self._file.write(bytes(2 * BLOCK))

    def _write(self, name: str, data: bytes | bytearray) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o600
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
        self._file.write(data)
        self._file.write(bytes(-len(data) % BLOCK))


@contextlib.contextmanager
def write_archive(path: Path) -> Generator[ArchiveWriter]:
    """A draft that becomes the file `path` once it was finished, is safe on the disk, and was read again.

    Raises BadBackup if there is such a file already.
    """
    _refuse_to_overwrite(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:  # for its owner
        draft = Path(file.name)
        try:
            with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed:
                yield ArchiveWriter(packed)
            file.flush()
            os.fsync(file.fileno())
            check(draft)
            _refuse_to_overwrite(path)
            draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def check(path: Path) -> ArchiveContents:
    """What a file says of itself, once every byte of it was read and compared. Raises BadBackup."""
    digests, key, manifest = dict[str, str](), None, None
    for member in members(path):
        if manifest is not None or member.name in digests or len(digests) == MEMBERS_LIMIT:
            raise _broken(path)
        if member.name == MANIFEST:
            manifest = _manifest(path, member.read_all(MANIFEST_LIMIT_BYTES))
            continue
        if member.name == KEY:
            key = member.read_all(KEY_LIMIT_BYTES)
        digests[member.name] = member.digest()
    if manifest is None or manifest.members != digests:
        raise _broken(path)
    return ArchiveContents(manifest, key)


class _Unpacked:
    """The tar inside of a gzipped file."""

    def __init__(self, path: Path, file: gzip.GzipFile) -> None:
        self.path = path
        self._file = file

    def read(self, size_bytes: int) -> bytes:
        """Exactly so much; memory is taken as it comes, not as it is announced. Raises BadBackup if there is less."""
        data = bytearray()
        while len(data) < size_bytes:
            piece = self._read(min(size_bytes - len(data), CHUNK_BYTES))
            if not piece:
                raise _broken(self.path)
            data += piece
        return bytes(data)

    def has_more(self) -> bool:
        """Whether anything comes yet; when not, the checksum that ends a gzipped file was compared."""
        return self._read(1) != b""

    def _read(self, size_bytes: int) -> bytes:
        try:
            return self._file.read(size_bytes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _broken(self.path) from error


class Member:
    """One file of a backup, to be read once, from its beginning."""

    def __init__(self, stream: _Unpacked, info: tarfile.TarInfo) -> None:
        self.name = info.name
        self.left_bytes = info.size
        self._padding_bytes = -info.size % BLOCK
        self._stream = stream
        self._digest = hashlib.sha256()

    def read(self, size_bytes: int) -> bytes:
        """Exactly so much. Raises BadBackup if there is less."""
        if size_bytes > self.left_bytes:
            raise _broken(self._stream.path)
        data = self._stream.read(size_bytes)
        self.left_bytes -= size_bytes
        self._digest.update(data)
        return data

    def read_all(self, limit_bytes: int) -> bytes:
        """All of it. Raises BadBackup if that is more than `limit_bytes`."""
        if self.left_bytes > limit_bytes:
            raise _broken(self._stream.path)
        return self.read(self.left_bytes)

    def digest(self) -> str:
        """Its SHA-256; what was not read yet is read away."""
        while self.left_bytes:
            self.read(min(self.left_bytes, CHUNK_BYTES))
        return self._digest.hexdigest()

    def end(self) -> None:
        """Goes to where the next one begins."""
        self.digest()
        self._stream.read(self._padding_bytes)


def members(path: Path) -> Iterator[Member]:
    """The files of a backup, in order; each is gone once the next one is asked for. Raises BadBackup."""
    with path.open("rb") as file:
        if file.read(len(GZIP)) != GZIP:
            raise BadBackup(f"{path} is not a backup.")
        file.seek(0)
        with gzip.GzipFile(fileobj=file) as packed:
            stream = _Unpacked(path, packed)
            while (header := stream.read(BLOCK)) != bytes(BLOCK):
                member = Member(stream, _info(path, header))
                yield member
                member.end()
            if stream.read(BLOCK) != bytes(BLOCK) or stream.has_more():
                raise _broken(path)


def _info(path: Path, header: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise _broken(path) from None
    if info.type != tarfile.REGTYPE or info.size < 0:
        raise BadBackup(f"{path} is not a backup: there is more in it than plain files.")
    return info


def _manifest(path: Path, text: bytes) -> Manifest:
    try:
        number = msgspec.json.decode(text, type=_Format).format
        if number > FORMAT:
            raise BadBackup(f"{path} is of format {number}, which a newer Signoff has made; this one knows {FORMAT}.")
        return msgspec.json.decode(text, type=Manifest)
    except UNREADABLE:
        raise _broken(path) from None


def _broken(path: Path) -> BadBackup:
    return BadBackup(f"{path} is broken, cut off, or no backup of Signoff; nothing was restored from it.")


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise BadBackup(f"{path} exists already, and is not overwritten.")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
