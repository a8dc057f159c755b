"""A backup holds every table as it was at one moment, and comes back the same in either database, or not at all."""

from __future__ import annotations

import asyncio
import gzip
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from signoff.errors import SchemaOutdated
from signoff.stores import migrations
from signoff.stores.archive import FORMAT, ArchiveWriter, BadBackup, Manifest, TableSummary, check, write_archive
from signoff.stores.backup import _with_stored_types as with_stored_types
from signoff.stores.schema import metadata
from signoff.stores.sql import SqlStore
from support.stores import a_job, execute, inserted, opened, rows, together

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

TEXTS = ("", "ä€😀 \u202e\ufffd\n\t\"'\\%s{}", "0", " ", "x" * 100_000)
BYTES = (b"", bytes(range(256)), b"\xff\xfe" * 50_000, b"null", b"\0")
BITS = {sa.SmallInteger: 15, sa.Integer: 31, sa.BigInteger: 63}
ROWS = len(TEXTS)
NEWEST = migrations._REVISIONS[-1]


def odd(column: sa.Column[Any], row: int) -> Any:
    """The value of a column in one of ROWS rows; between them they have all that is odd."""
    if column.nullable and row == 0:
        return None
    if column.foreign_keys:
        return 3
    kind = with_stored_types(column.table).c[column.name].type
    unique = column.primary_key or bool(column.unique)
    if kind.python_type is int and (unique or column.table.name == "versions"):
        return row * 10 + 3
    if kind.python_type is int:
        most = 2 ** BITS[type(kind)] - 1
        return (0, most, -most - 1, -1, 7)[row]
    if kind.python_type is str and is_indexed(column):  # PostgreSQL's indexes take no long ones
        return f"{TEXTS[row][:50]}{row}"
    return {str: TEXTS, bytes: BYTES, bool: (True, False) * ROWS}[kind.python_type][row]


def is_indexed(column: sa.Column[Any]) -> bool:
    indexed = {name for index in column.table.indexes for name in index.columns.keys()}  # noqa: SIM118 -- not a dict
    return column.primary_key or bool(column.unique) or column.name in indexed


def odd_rows(table: sa.Table) -> list[dict[str, Any]]:
    return [{column.name: odd(column, row) for column in table.c} for row in range(ROWS)]


async def fill_with_odd_rows(store: SqlStore) -> None:
    for table in metadata.sorted_tables:
        await execute(store, sa.delete(with_stored_types(table)))
        await execute(store, sa.insert(with_stored_types(table)).values(odd_rows(table)))


async def everything(store: SqlStore) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, as it is stored, in an order of its own."""
    return {
        table.name: sorted(await rows(store, sa.select(with_stored_types(table))), key=repr)
        for table in metadata.sorted_tables
    }


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a new database of either kind."""
    return address(request.param, tmp_path / "either", request)


@pytest.fixture(params=["sqlite to sqlite", "sqlite to postgres", "postgres to sqlite"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Return the addresses of two new databases."""
    kinds = request.param.split(" to ")
    return [address(kind, tmp_path / str(number), request) for number, kind in enumerate(kinds)]


def address(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    return f"sqlite:///{folder}/store.db" if kind == "sqlite" else request.getfixturevalue("empty_postgres_url")


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    """Return the address of a database that is not there yet."""
    return f"sqlite:///{tmp_path}/empty/store.db"


async def restored(url: str, file: Path, manifest: Manifest | None = None) -> None:
    store = SqlStore(url)
    try:
        await store.restore(file, manifest or check(file).manifest)
    finally:
        await store.close()


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """Return a backup with odd rows in it."""
    async with opened(f"sqlite:///{tmp_path}/source.db") as store:
        await fill_with_odd_rows(store)
        await store.backup(tmp_path / "backup")
    return tmp_path / "backup"


async def test_every_value_of_every_column_of_every_table_comes_back(urls: list[str], tmp_path: Path) -> None:
    # given every column of every table filled
    async with opened(urls[0]) as store:
        await fill_with_odd_rows(store)
        before = await everything(store)
        manifest = await store.backup(tmp_path / "backup")
    assert manifest.tables == {
        name: TableSummary(tuple(table.columns.keys()), ROWS) for name, table in metadata.tables.items()
    }
    # when all of it is restored elsewhere
    await restored(urls[1], tmp_path / "backup")
    # then it is the same, but that versions have grown
    async with opened(urls[1]) as store:
        after = await everything(store)
        for row in after["versions"]:
            row["version"] -= 1
        assert after == before
        # and ids go on behind the restored ones
        assert (await store.people.put_user("new@example.com", "user")).id == 3 + 10 * (ROWS - 1) + 1


async def test_a_backup_is_of_one_moment_while_others_write(url: str, tmp_path: Path, empty_url: str) -> None:
    async with opened(url) as store:
        before = 4000
        for _ in range(before // 200):  # a busy machine may not write all of them before a writer gives up
            await together(store.jobs.insert(a_job(), actor="before") for _ in range(200))
        # given somebody who writes, a job and its event at a time
        backup = asyncio.ensure_future(store.backup(tmp_path / "backup"))
        wrote = 0
        while not backup.done():
            await inserted(store)
            wrote += 1
        manifest = await backup
        assert wrote
    # then it holds what was there when it began, and each job has its event
    assert before <= manifest.rows("jobs") < before + wrote
    await restored(empty_url, tmp_path / "backup")
    async with opened(empty_url) as store:
        jobs = await rows(store, sa.select(metadata.tables["jobs"].c.id))
        events = await rows(store, sa.select(metadata.tables["events"].c.job_id.label("id")))
        assert sorted(map(repr, jobs)) == sorted(map(repr, events))


async def test_a_backup_is_for_its_owner_alone_and_overwrites_nothing(file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600

    async with opened(f"sqlite:///{tmp_path}/source.db") as store:
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


async def test_a_backup_has_several_pieces_and_other_tools_can_read_it(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/source.db") as store:
        for _ in range(5):
            await inserted(store, body=b'"' + bytes(2**21) + b'"')
        await store.backup(tmp_path / "backup")
    with tarfile.open(tmp_path / "backup") as tar:
        assert [name for name in tar.getnames() if name.startswith("jobs/")] == [f"jobs/{n:06}" for n in range(3)]
        assert tar.getnames()[-1] == "manifest.json"
        assert all(member.isfile() and member.mode == 0o600 for member in tar)


async def test_a_file_that_was_cut_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for size in [*range(30), *range(30, len(whole), len(whole) // 50), *range(len(whole) - 30, len(whole))]:
        file.write_bytes(whole[:size])
        with pytest.raises(BadBackup):
            check(file)


async def test_a_file_with_one_wrong_bit_is_refused_unless_it_unpacks_to_the_same(file: Path) -> None:
    whole, refused = file.read_bytes(), 0
    unpacked = gzip.decompress(whole)
    places = [*range(10, len(whole), len(whole) // 100), *range(len(whole) - 8, len(whole))]
    for place in places:
        broken = whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        file.write_bytes(broken)
        try:
            check(file)
        except BadBackup:
            refused += 1
        else:  # where one letter comes very often, it is the same whichever is repeated
            assert gzip.decompress(broken) == unpacked
    assert refused > 20


async def test_what_comes_behind_a_backup_makes_it_broken(file: Path) -> None:
    whole = file.read_bytes()
    for more in (b"more", gzip.compress(b"more"), gzip.compress(bytes(512))):
        file.write_bytes(whole + more)
        with pytest.raises(BadBackup):
            check(file)


async def test_a_database_in_use_is_refused_and_stays_as_it_is(url: str, file: Path) -> None:
    async with opened(url) as store:
        await store.people.put_user("a@example.com", "admin")
        before = await everything(store)
    with pytest.raises(BadBackup, match="not empty: it contains users"):
        await restored(url, file)
    async with opened(url) as store:
        assert await everything(store) == before
        await execute(store, sa.delete(metadata.tables["users"]))
        await inserted(store)
    with pytest.raises(BadBackup, match=r"not empty: it contains (jobs|events)"):
        await restored(url, file)


async def test_processes_that_saw_the_empty_database_see_that_it_has_changed(file: Path, empty_url: str) -> None:
    async with opened(empty_url) as store:
        await execute(store, sa.update(metadata.tables["versions"]).values(version=1000))
    await restored(empty_url, file)
    async with opened(empty_url) as store:
        assert min((await store.versions()).values()) > 1000


async def test_a_restore_that_fails_leaves_the_database_empty(
    file: Path, tmp_path: Path, empty_postgres_url: str
) -> None:
    # given a value that SQLite takes, and PostgreSQL does not
    async with opened(f"sqlite:///{tmp_path}/source.db") as store:
        await execute(store, sa.update(metadata.tables["tokens"]).values(name="a\0b"))
        await store.backup(tmp_path / "bad")
    with pytest.raises(BadBackup, match="rejected the rows") as refusal:
        await restored(empty_postgres_url, tmp_path / "bad")
    assert "\n" not in refusal.value.message
    # then another one can be restored
    await restored(empty_postgres_url, file)
    async with opened(empty_postgres_url) as store:
        assert len((await everything(store))["tokens"]) == ROWS


async def test_a_restore_that_is_stopped_at_its_end_leaves_the_database_empty(file: Path, empty_url: str) -> None:
    def fail() -> None:
        raise TimeoutError

    store = SqlStore(empty_url)
    with pytest.raises(TimeoutError):
        await store.restore(file, check(file).manifest, at_end=fail)
    await store.close()
    await restored(empty_url, file)


async def test_no_backup_is_made_of_what_is_not_there_or_too_old(tmp_path: Path) -> None:
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
    # given a version with one revision more than the backup has
    home = Path(migrations.__file__).parent
    newer = tmp_path / "migrations"
    (newer / "versions").mkdir(parents=True)
    for path in (home / "env.py", *(home / "versions").glob("*.py")):
        (newer / path.relative_to(home)).write_bytes(path.read_bytes())
    (newer / "versions" / "nicknames.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision, branch_labels, depends_on = 'next', {NEWEST!r}, None, None\n"
        "def upgrade():\n    op.add_column('users', sa.Column('nickname', sa.Text(), server_default='none'))\n"
    )
    monkeypatch.setattr(migrations, "_FOLDER", newer)
    monkeypatch.setattr(migrations, "_REVISIONS", [*migrations._REVISIONS, "next"])
    # when it is restored
    await restored(empty_url, file)
    # then it has all rows, and the newer schema
    async with opened(empty_url) as store:
        nicknames = await rows(store, sa.select(sa.table("users", sa.column("nickname"))))
        assert nicknames == [{"nickname": "none"}] * ROWS
        # and what is newer already is refused
        for table in reversed(metadata.sorted_tables):
            await execute(store, sa.delete(table))
    with pytest.raises(BadBackup, match=f"has schema next, the backup {NEWEST}"):
        await restored(empty_url, file)


# Files that somebody has made


Make = Callable[[ArchiveWriter], None]


def made(path: Path, make: Make, **more: Any) -> Path:
    """A backup with whatever `make` puts into it, and a manifest that fits, but for what `more` says."""
    with gzip.GzipFile(path, "wb") as packed:
        draft = ArchiveWriter(packed)
        make(draft)
        plain = {"format": FORMAT, "signoff": "0", "revision": NEWEST, "made_at": "", "members": draft.members}
        tables = {
            str(name): TableSummary(tuple(map(str, table.columns.keys())), 0) for name, table in metadata.tables.items()
        }
        draft.finish(Manifest(**(plain | {"tables": tables} | more)))
    return path


def framed(*values: Any) -> bytes:
    return b"".join(len(row).to_bytes(4, "big") + row for row in map(msgspec.msgpack.encode, values))


def nothing(draft: ArchiveWriter) -> None:
    """Puts nothing in."""


@pytest.mark.parametrize(
    ("make", "more", "why"),
    [
        (nothing, {"format": 2}, "format 2; this"),
        (nothing, {"revision": "9999"}, "unknown schema revision '9999'"),
        (nothing, {"revision": ""}, "unknown schema revision ''"),
        (nothing, {"tables": {}}, "does not have the tables"),
        (nothing, {"members": {"jobs/000000": ""}}, "damaged"),
        (lambda draft: draft.add("versions/000000", framed(["models", 1])), {}, "number of rows"),
        (lambda draft: draft.add("versions/000000", framed(["models", "1"])), {}, "cannot be decoded"),
        (lambda draft: draft.add("versions/000000", framed([[[]] * 1000, 1])), {}, "cannot be decoded"),
        (lambda draft: draft.add("versions/000000", framed(["models"])), {}, "cannot be decoded"),
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
async def test_a_file_that_lies_is_refused(
    make: Make, more: dict[str, Any], why: str, tmp_path: Path, empty_url: str
) -> None:
    path = made(tmp_path / "made", make, **more)
    with pytest.raises(BadBackup, match=why) as refusal:
        await restored(empty_url, path)
    assert "\n" not in refusal.value.message


async def test_a_backup_of_an_empty_database_can_be_restored(tmp_path: Path, empty_url: str) -> None:
    await restored(empty_url, made(tmp_path / "made", nothing))
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
async def test_a_file_that_is_no_backup_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(BadBackup, match="backup"):
        check(tmp_path / "file")


async def test_a_name_that_leads_elsewhere_leads_nowhere(tmp_path: Path, empty_url: str) -> None:
    def make(draft: ArchiveWriter) -> None:
        for name in ("../evil", "/tmp/evil", "jobs/../../evil", "nothing/000000"):
            draft.add(name, b"")

    before = {*tmp_path.iterdir()}
    await restored(empty_url, made(tmp_path / "made", make))
    assert {path.name for path in {*tmp_path.iterdir()} - before} == {"made", "empty"}


async def test_a_small_file_that_unpacks_to_much_takes_little_memory(tmp_path: Path) -> None:
    size = 300 * 1024 * 1024
    with gzip.GzipFile(tmp_path / "bomb", "wb", 9) as packed:
        packed.write(header("jobs/000000", size, tarfile.REGTYPE))
        for _ in range(300):
            packed.write(bytes(1024 * 1024))
    tracemalloc.start()
    try:
        with pytest.raises(BadBackup):
            check(tmp_path / "bomb")
        assert tracemalloc.get_traced_memory()[1] < size / 30
    finally:
        tracemalloc.stop()
