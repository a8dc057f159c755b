"""The file format of a backup: a gzipped tar archive of plain files, with the manifest last.

A backup is written to a temporary file and renamed. It is read with bounded memory: Python's `tarfile` reads extended
headers of any size, so here each header is parsed alone, and an entry that is not a plain file is an error. Names in an
archive are never used as names of files.
"""

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
GZIP_LEVEL = 1  # less than half the time of the default level, for a fifth more bytes
BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 1024 * 1024
MAX_MANIFEST_BYTES = 512 * 1024 * 1024
MAX_KEY_BYTES = 64 * 1024
MAX_MEMBERS = 2_000_000
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
GZIP_MAGIC = b"\x1f\x8b"


class BadBackup(SignoffError):
    """The backup cannot be written, read or restored."""

    code = "bad_backup"


class TableSummary(msgspec.Struct, frozen=True):
    """The contents of one table in a backup."""

    columns: tuple[str, ...]
    """The names of the columns, in the order of the values in each row."""

    rows: int
    """The number of rows."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a backup, which is its last file."""

    format: int
    """The version of the file format."""

    signoff: str
    """The version of Signoff that wrote the backup."""

    revision: str
    """The revision of the database's schema."""

    made_at: str
    """The time of the backup, by the database's clock, in ISO 8601."""

    tables: dict[str, TableSummary]
    """The tables by name."""

    members: dict[str, str]
    """The SHA-256 of each other file of the backup, in hexadecimal, by name."""

    def rows(self, table: str) -> int:
        """Return the number of rows of a table; 0 if the backup does not have it."""
        return self.tables[table].rows if table in self.tables else 0


class _Format(msgspec.Struct, frozen=True):
    format: int


class ArchiveContents(msgspec.Struct, frozen=True):
    """The manifest and the key of a backup whose checksums are right."""

    manifest: Manifest
    """The description of the backup."""

    key: bytes | None
    """The file with the vault's keys, or None if the backup was written without it."""


class ArchiveWriter:
    """A backup that is being written. `members` are the digests of the files so far."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self.members: dict[str, str] = {}

    def add(self, name: str, data: bytes | bytearray) -> None:
        """Append a file. Raises BadBackup if the archive has as many as `check` accepts."""
        if len(self.members) == MAX_MEMBERS:
            raise BadBackup(
                f"A backup can have at most {MAX_MEMBERS} parts, at least one for each file, and this one needs more; "
                "delete files that nobody needs, or set `output_expires_after` for new batches."
            )
        self.members[name] = hashlib.sha256(data).hexdigest()
        self._write(name, data)

    def finish(self, manifest: Manifest) -> None:
        """Append the manifest, and end the archive."""
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
    """Return a context with the writer of a new backup.

    When the context ends, the temporary file is synced to disk, read again and checked, and renamed to `path`; after an
    error it is deleted. Raises BadBackup if `path` exists.
    """
    _refuse_to_overwrite(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:  # mode 0600
        temporary = Path(file.name)
        try:
            with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed:
                yield ArchiveWriter(packed)
            file.flush()
            os.fsync(file.fileno())
            check(temporary)
            _refuse_to_overwrite(path)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def check(path: Path) -> ArchiveContents:
    """Read a whole backup, compare all checksums, and return its manifest and key. Raises BadBackup."""
    digests, key, manifest = dict[str, str](), None, None
    for member in members(path):
        if manifest is not None or member.name in digests or len(digests) > MAX_MEMBERS:
            raise _damaged(path)
        if member.name == MANIFEST:
            manifest = _parse_manifest(path, member.read_all(MAX_MANIFEST_BYTES))
            continue
        if member.name == KEY:
            key = member.read_all(MAX_KEY_BYTES)
        digests[member.name] = member.digest()
    if manifest is None or manifest.members != digests:
        raise _damaged(path)
    return ArchiveContents(manifest, key)


class _Unpacked:
    """A reader of the tar archive inside a gzipped file."""

    def __init__(self, path: Path, file: gzip.GzipFile) -> None:
        self.path = path
        self._file = file

    def read(self, size_bytes: int) -> bytes:
        """Return exactly `size_bytes`, read in chunks so that a false size allocates no memory. Raises BadBackup."""
        data = bytearray()
        while len(data) < size_bytes:
            chunk = self._read(min(size_bytes - len(data), CHUNK_BYTES))
            if not chunk:
                raise _damaged(self.path)
            data += chunk
        return bytes(data)

    def has_more(self) -> bool:
        """Return True if there is more data. If not, the checksum at the end of the gzip file was compared."""
        return self._read(1) != b""

    def _read(self, size_bytes: int) -> bytes:
        try:
            return self._file.read(size_bytes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(self.path) from error


class Member:
    """A file in a backup, which can be read once, from its beginning."""

    def __init__(self, stream: _Unpacked, info: tarfile.TarInfo) -> None:
        self.name = info.name
        self.left_bytes = info.size
        self._padding_bytes = -info.size % BLOCK
        self._stream = stream
        self._digest = hashlib.sha256()
        self._ahead = b""
        self._position = 0
        """Number of bytes of `_ahead` that were returned already."""

    def read(self, size_bytes: int) -> bytes:
        """Return the next `size_bytes`. Raises BadBackup if there are fewer."""
        if size_bytes > self.left_bytes:
            raise _damaged(self._stream.path)
        if self._position + size_bytes > len(self._ahead):
            self._read_ahead(size_bytes)
        data = self._ahead[self._position : self._position + size_bytes]
        self._position += size_bytes
        self.left_bytes -= size_bytes
        return data

    def _read_ahead(self, size_bytes: int) -> None:
        """Read at least `size_bytes`, and a megabyte if there is one, because most rows are small."""
        rest = self._ahead[self._position :]
        size = min(max(size_bytes, CHUNK_BYTES), self.left_bytes) - len(rest)
        data = self._stream.read(size)
        self._digest.update(data)
        self._ahead, self._position = rest + data, 0

    def read_all(self, limit_bytes: int) -> bytes:
        """Return the whole rest. Raises BadBackup if it is larger than `limit_bytes`."""
        if self.left_bytes > limit_bytes:
            raise _damaged(self._stream.path)
        return self.read(self.left_bytes)

    def digest(self) -> str:
        """Read the rest, and return the SHA-256 of the file in hexadecimal."""
        while self.left_bytes:
            self.read(min(self.left_bytes, CHUNK_BYTES))
        return self._digest.hexdigest()

    def end(self) -> None:
        """Read up to the header of the next file."""
        self.digest()
        self._stream.read(self._padding_bytes)


def members(path: Path) -> Iterator[Member]:
    """Yield the files of a backup in order. Each can be read only until the next one is requested. Raises BadBackup."""
    with path.open("rb") as file:
        if file.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
            raise BadBackup(f"{path} is not a Signoff backup: it is not a gzip file.")
        file.seek(0)
        with gzip.GzipFile(fileobj=file) as packed:
            stream = _Unpacked(path, packed)
            while (header := stream.read(BLOCK)) != bytes(BLOCK):
                member = Member(stream, _parse_header(path, header))
                yield member
                member.end()
            if stream.read(BLOCK) != bytes(BLOCK) or stream.has_more():
                raise _damaged(path)


def _parse_header(path: Path, header: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise _damaged(path) from None
    if info.type != tarfile.REGTYPE or info.size < 0:
        raise BadBackup(f"{path} is not a Signoff backup: it contains an entry that is not a plain file.")
    return info


def _parse_manifest(path: Path, text: bytes) -> Manifest:
    try:
        number = msgspec.json.decode(text, type=_Format).format
        if number > FORMAT:
            raise BadBackup(f"{path} has format {number}; this version reads format {FORMAT}. Use a newer version.")
        return msgspec.json.decode(text, type=Manifest)
    except UNREADABLE:
        raise _damaged(path) from None


def _damaged(path: Path) -> BadBackup:
    return BadBackup(f"{path} is damaged, incomplete, or not a Signoff backup; nothing was restored from it.")


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise BadBackup(f"{path} exists already and is not overwritten; choose another file name.")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
