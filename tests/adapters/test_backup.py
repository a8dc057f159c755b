"""Backup and restore: every table as it was at one moment, into either database, completely or not at all."""

from __future__ import annotations

import asyncio
import functools
import gzip
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet

from contracts.test_receipts import decided
from signoff.commands.backup import restore as restore_all
from signoff.core.job import Decision
from signoff.core.reviews.figures import FigureQuery
from signoff.core.reviews.receipt_chain import ChainVerifier
from signoff.errors import SchemaOutdated
from signoff.records import ReceiptFilter
from signoff.settings import Settings
from signoff.stores.archive import FORMAT, ArchiveWriter, BadBackup, Manifest, TableSummary, check, write_archive
from signoff.stores.backup import _with_stored_types
from signoff.stores.migrations import MIN_COMPATIBLE
from signoff.stores.schema import metadata
from signoff.stores.sql import SqlStore
from support.database_files import make_file
from support.revisions import NEWEST, add_revision
from support.stores import a_job, execute, held, inserted, opened, rows, together

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

TEXTS = ("", "ä€😀 \u202e\ufffd\n\t\"'\\%s{}", "0", " ", "x" * 100_000)
BYTES = (b"", bytes(range(256)), b"\xff\xfe" * 50_000, b"null", b"\0")
FLOATS = (0.0, -1.5, 1e308, 5e-324, 0.1)
BITS = {sa.SmallInteger: 15, sa.Integer: 31, sa.BigInteger: 63}
ROWS = len(TEXTS)
with_stored_types = functools.cache(_with_stored_types)


def unusual_value(column: sa.Column[Any], row: int) -> Any:
    """Return the value of a column in one of ROWS rows; together, the rows hold all unusual values."""
    if column.nullable and row == 0:
        return None
    if column.foreign_keys:
        return 3
    kind = with_stored_types(column.table).c[column.name].type
    unique = column.primary_key or bool(column.unique)
    if kind.python_type is int and (unique or column.table.name == "versions"):
        return row * 10 + 3
    if kind.python_type is int:
        maximum = 2 ** BITS[type(kind)] - 1
        return (0, maximum, -maximum - 1, -1, 7)[row]
    if kind.python_type is str and is_indexed(column):  # PostgreSQL's indexes refuse long values
        return f"{TEXTS[row][:50]}{row}"
    return {str: TEXTS, bytes: BYTES, bool: (True, False) * ROWS, float: FLOATS}[kind.python_type][row]


def is_indexed(column: sa.Column[Any]) -> bool:
    indexed = {name for index in column.table.indexes for name in index.columns.keys()}  # noqa: SIM118 -- not a dict
    return column.primary_key or bool(column.unique) or column.name in indexed


def unusual_rows(table: sa.Table, longest: int) -> list[dict[str, Any]]:
    rows = [{column.name: unusual_value(column, row) for column in table.c} for row in range(ROWS)]
    return [
        {name: value[:longest] if isinstance(value, str | bytes) else value for name, value in row.items()}
        for row in rows
    ]


async def fill_with_unusual_rows(store: SqlStore, longest: int = 100_000) -> None:
    """Fill each column of each table, with texts and bytes of at most `longest`."""
    for table in metadata.sorted_tables:
        await execute(store, sa.delete(with_stored_types(table)))
        await execute(store, sa.insert(with_stored_types(table)).values(unusual_rows(table, longest)))


async def all_rows(store: SqlStore) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table as it is stored, in a stable order."""
    return {
        table.name: sorted(await rows(store, sa.select(with_stored_types(table))), key=repr)
        for table in metadata.sorted_tables
    }


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a new database of either kind, which has its schema."""
    return address(request.param, tmp_path / "either", request, "postgres_url")


@pytest.fixture(params=["sqlite to sqlite", "sqlite to postgres", "postgres to sqlite"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Return the addresses of two new databases, of which the first has its schema."""
    source, target = request.param.split(" to ")
    return [
        address(source, tmp_path / "source", request, "postgres_url"),
        address(target, tmp_path / "target", request, "empty_postgres_url"),
    ]


def address(kind: str, folder: Path, request: pytest.FixtureRequest, postgres: str) -> str:
    """Return the address of a database in `folder`, or of the one that the fixture `postgres` provides."""
    return f"sqlite:///{folder}/store.db" if kind == "sqlite" else request.getfixturevalue(postgres)


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    """Return the address of a database that is not there yet."""
    return f"sqlite:///{tmp_path}/empty/store.db"


async def restore(url: str, file: Path, manifest: Manifest | None = None) -> None:
    store = SqlStore(url)
    try:
        await store.restore(file, manifest or check(file).manifest)
    finally:
        await store.close()


@pytest.fixture
def migrated_url(tmp_path: Path) -> str:
    """Return the address of an empty database with the newest schema, for tests of what comes after its migration."""
    make_file(tmp_path / "empty" / "store.db")
    return f"sqlite:///{tmp_path}/empty/store.db"


@pytest.fixture(scope="module")
async def backup(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a backup with unusual values that are not long, so that it is checked quickly."""
    folder = tmp_path_factory.mktemp("source")
    async with opened(f"sqlite:///{folder}/source.db") as store:
        await fill_with_unusual_rows(store, longest=100)
        await store.backup(folder / "backup")
    return (folder / "backup").read_bytes()


@pytest.fixture
def file(backup: bytes, tmp_path: Path) -> Path:
    """Return the path of a backup with unusual values, for this test alone."""
    path = tmp_path / "backup"
    path.write_bytes(backup)
    return path


async def test_every_value_of_every_column_of_every_table_comes_back(urls: list[str], tmp_path: Path) -> None:
    # given every column of every table filled
    async with opened(urls[0]) as store:
        await fill_with_unusual_rows(store)
        before = await all_rows(store)
        manifest = await store.backup(tmp_path / "backup")
    assert manifest.tables == {
        name: TableSummary(tuple(table.columns.keys()), ROWS) for name, table in metadata.tables.items()
    }
    # when the backup is restored into another database
    await restore(urls[1], tmp_path / "backup")
    # then the rows are the same, except that the versions have increased, and that the migration has stored its row
    async with opened(urls[1]) as store:
        after = await all_rows(store)
        after["versions"] = [row for row in after["versions"] if row["topic"] != MIN_COMPATIBLE]
        for row in after["versions"]:
            row["version"] -= 1
        assert after == before
        # and new ids follow the restored ones
        assert (await store.people.put_user("new@example.com", "user")).id == 3 + 10 * (ROWS - 1) + 1


async def test_receipts_and_figures_go_on_after_a_restore(urls: list[str], tmp_path: Path) -> None:
    approve = Decision(verdict="approve", reviewer="ann")
    async with opened(urls[0]) as store:
        assert isinstance(store, SqlStore)
        for _ in range(3):
            await decided(store, await held(store), approve)
        figures, head = await store.receipts.figures(FigureQuery(by=("reviewer",))), await store.receipts.head()
        assert figures[1].decisions == 3
        await store.backup(tmp_path / "backup")
    await restore(urls[1], tmp_path / "backup")
    async with opened(urls[1]) as store:
        assert await store.receipts.figures(FigureQuery(by=("reviewer",))) == figures
        await decided(store, await held(store), approve)
        chain = ChainVerifier([await store.receipts.public_key()], head)
        for row in await store.receipts.page(ReceiptFilter()):
            chain.add(row.line)
        chain.finish()
        assert chain.last == head.count + 1


async def test_a_backup_is_consistent_while_others_write(url: str, tmp_path: Path, migrated_url: str) -> None:
    async with opened(url) as store:
        before = 4000
        for _ in range(before // 200):  # in batches, as a write that waits too long fails
            await together(store.jobs.insert(a_job(), actor="before") for _ in range(200))
        # given a writer that inserts jobs, each with its event
        backup = asyncio.ensure_future(store.backup(tmp_path / "backup"))
        written = 0
        while not backup.done():
            await inserted(store)
            written += 1
        manifest = await backup
        assert written
    # then the backup holds all jobs from before it began, and each job has its event
    assert before <= manifest.rows("jobs") < before + written
    await restore(migrated_url, tmp_path / "backup")
    async with opened(migrated_url) as store:
        jobs = await rows(store, sa.select(metadata.tables["jobs"].c.id))
        events = await rows(store, sa.select(metadata.tables["events"].c.job_id.label("id")))
        assert sorted(map(repr, jobs)) == sorted(map(repr, events))


async def test_only_the_owner_can_read_a_backup_and_it_overwrites_nothing(tmp_path: Path) -> None:
    file = tmp_path / "backup"
    async with opened(f"sqlite:///{tmp_path}/source.db") as store:
        await store.backup(file)
        before = file.read_bytes()
        assert file.stat().st_mode & 0o777 == 0o600

        with pytest.raises(BadBackup, match="exists already"):
            await store.backup(file)
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(BadBackup, match="exists already"):
            await store.backup(tmp_path / "link")

    assert file.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


async def test_a_backup_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with write_archive(tmp_path / "backup") as draft:
            draft.add("jobs/000000", b"half")
            raise TimeoutError

    with pytest.raises(TimeoutError):
        fail()
    assert not list(tmp_path.iterdir())


async def test_a_backup_with_more_parts_than_can_be_checked_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(count: int) -> None:
        with write_archive(tmp_path / str(count)) as draft:
            for number in range(count):
                draft.add(f"blobs/{number}/000000", b"")
            fields = {"format": FORMAT, "signoff": "0", "revision": NEWEST, "made_at": "", "tables": {}}
            draft.finish(Manifest(**fields, members=draft.members))

    monkeypatch.setattr("signoff.stores.archive.MAX_MEMBERS", 3)
    write(3)
    assert len(check(tmp_path / "3").manifest.members) == 3
    with pytest.raises(BadBackup, match="at most 3 parts"):
        write(4)
    assert [*tmp_path.iterdir()] == [tmp_path / "3"]


async def test_a_backup_has_several_members_and_other_tools_can_read_it(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/source.db") as store:
        for _ in range(5):
            await inserted(store, body=b'"' + bytes(2**21) + b'"')
        await store.backup(tmp_path / "backup")
    with tarfile.open(tmp_path / "backup") as tar:
        assert [name for name in tar.getnames() if name.startswith("jobs/")] == [f"jobs/{n:06}" for n in range(3)]
        assert tar.getnames()[-1] == "manifest.json"
        assert all(member.isfile() and member.mode == 0o600 for member in tar)


async def test_a_truncated_file_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for size in [*range(30), *range(30, len(whole), len(whole) // 50), *range(len(whole) - 30, len(whole))]:
        file.write_bytes(whole[:size])
        with pytest.raises(BadBackup):
            check(file)


async def test_a_file_with_one_wrong_bit_is_refused_unless_it_unpacks_to_the_same(file: Path) -> None:
    whole, refusals = file.read_bytes(), 0
    unpacked = gzip.decompress(whole)
    offsets = [*range(10, len(whole), len(whole) // 100), *range(len(whole) - 8, len(whole))]
    for offset in offsets:
        broken = whole[:offset] + bytes([whole[offset] ^ (1 << offset % 8)]) + whole[offset + 1 :]
        file.write_bytes(broken)
        try:
            check(file)
        except BadBackup:
            refusals += 1
        else:  # a changed back-reference may point to an equal byte
            assert gzip.decompress(broken) == unpacked
    assert refusals > 20


async def test_trailing_data_makes_a_backup_invalid(file: Path) -> None:
    whole = file.read_bytes()
    for more in (b"more", gzip.compress(b"more"), gzip.compress(bytes(512))):
        file.write_bytes(whole + more)
        with pytest.raises(BadBackup):
            check(file)


async def test_a_database_with_rows_is_refused_and_unchanged(url: str, file: Path) -> None:
    async with opened(url) as store:
        user = {"email": "a@example.com", "role": "admin", "active": True}
        await execute(store, sa.insert(metadata.tables["users"]).values(user))
        before = await all_rows(store)
    with pytest.raises(BadBackup, match="not empty: it contains users"):
        await restore(url, file)
    async with opened(url) as store:
        assert await all_rows(store) == before
        await execute(store, sa.delete(metadata.tables["users"]))
        await inserted(store)
    with pytest.raises(BadBackup, match=r"not empty: it contains (jobs|events)"):
        await restore(url, file)


async def test_a_restore_increases_the_versions_that_other_processes_watch(file: Path, empty_url: str) -> None:
    async with opened(empty_url) as store:
        await execute(store, sa.update(metadata.tables["versions"]).values(version=1000))
    await restore(empty_url, file)
    async with opened(empty_url) as store:
        assert min((await store.versions()).values()) > 1000


async def test_a_restore_that_fails_leaves_the_database_empty(
    file: Path, tmp_path: Path, empty_postgres_url: str
) -> None:
    # given a value that SQLite accepts and PostgreSQL refuses
    async with opened(f"sqlite:///{tmp_path}/source.db") as store:
        await fill_with_unusual_rows(store, longest=100)
        await execute(store, sa.update(metadata.tables["tokens"]).values(name="a\0b"))
        await store.backup(tmp_path / "bad")
    with pytest.raises(BadBackup, match="rejected the rows") as refusal:
        await restore(empty_postgres_url, tmp_path / "bad")
    assert "\n" not in refusal.value.message
    # then another backup can be restored
    await restore(empty_postgres_url, file)
    async with opened(empty_postgres_url) as store:
        assert len((await all_rows(store))["tokens"]) == ROWS


async def test_a_restore_that_is_stopped_at_its_end_leaves_the_database_empty(file: Path, empty_url: str) -> None:
    def fail() -> None:
        raise TimeoutError

    store = SqlStore(empty_url)
    with pytest.raises(TimeoutError):
        await store.restore(file, check(file).manifest, at_end=fail)
    await store.close()
    await restore(empty_url, file)


async def test_a_missing_or_outdated_database_cannot_be_backed_up(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path}/nowhere/store.db")
    with pytest.raises(SchemaOutdated, match="There is no database at"):
        await store.start()
    await store.close()
    assert not list(tmp_path.iterdir())
    async with opened(f"sqlite:///{tmp_path}/store.db") as store:
        await execute(store, sa.text("UPDATE alembic_version SET version_num = '0000'"))
        with pytest.raises(SchemaOutdated):
            await store.backup(tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


async def test_an_older_backup_is_brought_up_to_date(
    file: Path, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a program whose schema is one revision newer than the backup
    column = "op.add_column('users', sa.Column('nickname', sa.Text(), server_default='none'))"
    add_revision(monkeypatch, tmp_path / "migrations", column)
    # when the backup is restored
    await restore(empty_url, file)
    # then the database has all rows and the newer schema
    async with opened(empty_url) as store:
        nicknames = await rows(store, sa.select(sa.table("users", sa.column("nickname"))))
        assert nicknames == [{"nickname": "none"}] * ROWS
        # and a database whose schema is newer than the backup is refused
        await execute(store, sa.text("DROP TRIGGER audit_no_delete"))
        await execute(store, sa.text("DROP TRIGGER receipts_no_delete"))
        for table in reversed(metadata.sorted_tables):
            await execute(store, sa.delete(table))
    with pytest.raises(BadBackup, match=f"has schema next, the backup {NEWEST}"):
        await restore(empty_url, file)


# Invalid and manipulated files


Make = Callable[[ArchiveWriter], None]


def make_backup(path: Path, make: Make, **more: Any) -> Path:
    """Write a backup with the members that `make` adds, and return its path.

    The manifest is valid except for the fields in `more`.
    """
    with gzip.GzipFile(path, "wb") as packed:
        draft = ArchiveWriter(packed)
        make(draft)
        fields = {"format": FORMAT, "signoff": "0", "revision": NEWEST, "made_at": "", "members": draft.members}
        tables = {
            str(name): TableSummary(tuple(map(str, table.columns.keys())), 0) for name, table in metadata.tables.items()
        }
        draft.finish(Manifest(**(fields | {"tables": tables} | more)))
    return path


def encode_rows(*values: Any) -> bytes:
    return b"".join(len(row).to_bytes(4, "big") + row for row in map(msgspec.msgpack.encode, values))


def nothing(draft: ArchiveWriter) -> None:
    """Add no members."""


@pytest.mark.parametrize(
    ("make", "more", "why"),
    [
        (nothing, {"format": 2}, "format 2; this"),
        (nothing, {"revision": "9999"}, "unknown schema revision '9999'"),
        (nothing, {"revision": ""}, "unknown schema revision ''"),
        (nothing, {"tables": {}}, "does not have the tables"),
        (nothing, {"members": {"jobs/000000": ""}}, "damaged"),
        (lambda draft: draft.add("versions/000000", encode_rows(["models", 1])), {}, "numbers of rows"),
        (lambda draft: draft.add("versions/000000", encode_rows(["models", "1"])), {}, "cannot be decoded"),
        (
            lambda draft: draft.add("versions/000000", encode_rows(["models", 2**63])),
            {},
            "too large|out of int64 range",
        ),
        (
            lambda draft: draft.add("versions/000000", encode_rows(["models", 1], ["models", 1])),
            {},
            "rejected the rows",
        ),
        (lambda draft: draft.add("versions/000000", encode_rows([[[]] * 1000, 1])), {}, "cannot be decoded"),
        (lambda draft: draft.add("versions/000000", encode_rows(["models"])), {}, "cannot be decoded"),
        (lambda draft: draft.add("versions/000000", b"\xff\xff\xff\xff"), {}, "larger than the limit"),
        (lambda draft: draft.add("versions/000000", b"\0\0\0\x09ab"), {}, "damaged"),
        (lambda draft: draft.add("versions/000000", b"\0"), {}, "damaged"),
        (lambda draft: [draft.add("a", b""), draft.add("a", b"")], {}, "damaged"),
        (lambda draft: draft.add("secret.key", bytes(10**6)), {}, "damaged"),
        (lambda draft: draft._write("manifest.json", b"{}"), {}, "damaged"),
        (lambda draft: draft._write("manifest.json", b"[" * 10_000), {}, "damaged"),
        (lambda draft: draft._write("manifest.json", b'{"format":1,"more":' + b"[" * 100_000), {}, "damaged"),
        (lambda draft: draft._write("manifest.json", b'{"format":1,"signoff":"\xff"}'), {}, "damaged"),
        (lambda draft: draft.add("versions/000000", b"\0\0\0\x04\x92\xa1\xff\x01"), {}, "cannot be decoded"),
    ],
)
async def test_a_file_with_invalid_contents_is_refused(
    make: Make, more: dict[str, Any], why: str, tmp_path: Path, migrated_url: str
) -> None:
    path = make_backup(tmp_path / "made", make, **more)
    with pytest.raises(BadBackup, match=why) as refusal:
        await restore(migrated_url, path)
    assert "\n" not in refusal.value.message


async def test_a_backup_of_an_empty_database_can_be_restored(tmp_path: Path, empty_url: str) -> None:
    await restore(empty_url, make_backup(tmp_path / "made", nothing))
    async with opened(empty_url) as store:
        assert await store.people.users() == []


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x1f",
        b"SQLite format 3\0" + bytes(1000),
        gzip.compress(b""),
        gzip.compress(b"hello"),
        gzip.compress(bytes(10_240)),
        gzip.compress(header("a", 5, tarfile.REGTYPE) + b"hello" + bytes(507 + 1024)),
        gzip.compress(header("jobs/000000", 0, tarfile.SYMTYPE) + bytes(1024)),
        gzip.compress(header("jobs/000000", 0, tarfile.LNKTYPE) + bytes(1024)),
        gzip.compress(header("../../jobs", 0, tarfile.DIRTYPE) + bytes(1024)),
        gzip.compress(header("a", 2**40, tarfile.GNUTYPE_LONGNAME)),
        gzip.compress(header("a", 2**40, tarfile.XHDTYPE)),
        gzip.compress(header("a", 2**80, tarfile.REGTYPE)),
        gzip.compress(header("a", 10, tarfile.REGTYPE)[:100]),
    ],
    ids=range(14),
)
async def test_a_file_that_is_not_a_backup_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(BadBackup, match="backup"):
        check(tmp_path / "file")


async def test_a_member_name_cannot_write_to_other_folders(tmp_path: Path, empty_url: str) -> None:
    def make(draft: ArchiveWriter) -> None:
        for name in ("../evil", "/tmp/evil", "jobs/../../evil", "nothing/000000"):
            draft.add(name, b"")

    before = {*tmp_path.iterdir()}
    await restore(empty_url, make_backup(tmp_path / "made", make))
    assert {path.name for path in {*tmp_path.iterdir()} - before} == {"made", "empty"}


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "files/../../evil", "files/.", "files//a", "files\\a", "…", ""]
)
async def test_a_file_with_a_name_that_no_file_has_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    def make(draft: ArchiveWriter) -> None:
        draft.add("secret.key", Fernet.generate_key())
        draft.add("blobs/files/first/000000", b"first")
        draft.add(f"blobs/{name}/000000", b"evil")

    path, data = make_backup(tmp_path / "made", make), tmp_path / "data"
    with pytest.raises(BadBackup, match="name"):
        await restore_all(Settings(data_dir=data), path)
    assert [*tmp_path.iterdir()] == [path]


async def test_a_small_file_with_a_huge_member_takes_little_memory(tmp_path: Path) -> None:
    size = 60 * 1024 * 1024
    with gzip.GzipFile(tmp_path / "bomb", "wb", 9) as packed:
        packed.write(header("jobs/000000", size, tarfile.REGTYPE))
        for _ in range(60):
            packed.write(bytes(1024 * 1024))
    tracemalloc.start()
    try:
        with pytest.raises(BadBackup):
            check(tmp_path / "bomb")
        assert tracemalloc.get_traced_memory()[1] < size / 6
    finally:
        tracemalloc.stop()
