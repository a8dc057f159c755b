"""Contract tests of blob stores, on a folder and on buckets of servers that speak for S3, Google and Azure."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.bucket import (
    INSTALL_SECONDS,
    azure_container,
    azurite_server,
    google_bucket,
    install_azurite,
    moto_server,
    s3_bucket,
)
from signoff.blobs.object_store import CHUNK_BYTES, ObjectBlobs, open_blobs
from signoff.errors import BlobMissing, Overloaded

pytestmark = pytest.mark.anyio
MEGABYTE = 1024 * 1024
# Seconds of a download, more than the 30 that `obstore` allows by itself.
DRIPS = 33


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """Yield the address of a server for S3 and for Google Cloud Storage."""
    with moto_server() as address:
        yield address


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a server for Azure."""
    folder = tmp_path_factory.mktemp("azurite")
    install_azurite(folder)
    with azurite_server(folder) as address:
        yield address


NewBucket = Callable[[str, pytest.MonkeyPatch], str]
BUCKETS: dict[str, tuple[str, NewBucket]] = {
    "s3": ("moto", s3_bucket),
    "gs": ("moto", google_bucket),
    "az": ("azurite", azure_container),
}
# The first test installs Azurite.
BUCKET_PARAMS = [
    pytest.param("s3", marks=pytest.mark.long),
    pytest.param("gs", marks=pytest.mark.long),
    pytest.param("az", marks=[pytest.mark.long, pytest.mark.timeout(2 * INSTALL_SECONDS)]),
]


def new_bucket(request: pytest.FixtureRequest, kind: str) -> str:
    """Return the URL of a new bucket."""
    server, create = BUCKETS[kind]
    return create(request.getfixturevalue(server), request.getfixturevalue("monkeypatch"))


@pytest.fixture(params=["folder", *BUCKET_PARAMS])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectBlobs:
    """Return an empty blob store."""
    if request.param == "folder":
        return open_blobs(None, tmp_path / "blobs")
    return open_blobs(new_bucket(request, request.param), tmp_path)


async def put(blobs: ObjectBlobs, name: str, *pieces: bytes) -> None:
    async with blobs.write(name) as writer:
        for piece in pieces:
            await writer.write(piece)


async def content(blobs: ObjectBlobs, name: str, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(name, offset=offset)])


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 20 * MEGABYTE + 1])
async def test_a_blob_of_any_size_is_read_as_it_was_written(blobs: ObjectBlobs, size: int) -> None:
    data = os.urandom(1024) * (size // 1024 + 1)
    data = data[:size]
    pieces = [data[start : start + 3 * MEGABYTE] for start in range(0, size, 3 * MEGABYTE)]
    await put(blobs, "files/a-1", *pieces)
    assert await content(blobs, "files/a-1") == data
    for offset in (1, size // 2, size, size + 1):
        assert await content(blobs, "files/a-1", offset) == data[offset:]


async def test_a_blob_is_read_in_pieces_of_bounded_size(blobs: ObjectBlobs) -> None:
    await put(blobs, "a", *[b"x" * MEGABYTE] * 30)
    sizes = [len(chunk) async for chunk in blobs.read("a")]
    assert sum(sizes) == 30 * MEGABYTE
    assert max(sizes) <= 8 * MEGABYTE


async def test_a_writer_tells_how_much_it_has_written(blobs: ObjectBlobs) -> None:
    async with blobs.write("a") as writer:
        assert writer.size_bytes == 0
        await writer.write(b"12345")
        await writer.write(b"678")
        assert writer.size_bytes == 8


async def test_a_blob_appears_when_it_is_complete(blobs: ObjectBlobs) -> None:
    async with blobs.write("a") as writer:
        await writer.write(b"x" * 10 * MEGABYTE)
        with pytest.raises(BlobMissing):
            await content(blobs, "a")
    assert len(await content(blobs, "a")) == 10 * MEGABYTE


@pytest.mark.parametrize("size", [3, 10 * MEGABYTE])
async def test_an_error_while_it_is_written_discards_a_blob(blobs: ObjectBlobs, size: int) -> None:
    await put(blobs, "a", b"old")
    with pytest.raises(ZeroDivisionError):
        async with blobs.write("a") as writer:
            await writer.write(b"x" * size)
            raise ZeroDivisionError
    assert await content(blobs, "a") == b"old"
    with pytest.raises(asyncio.CancelledError):
        async with blobs.write("b") as writer:
            await writer.write(b"x" * size)
            raise asyncio.CancelledError
    with pytest.raises(BlobMissing):
        await content(blobs, "b")


async def test_a_blob_replaces_the_one_of_the_same_name(blobs: ObjectBlobs) -> None:
    await put(blobs, "a", b"first, which is longer")
    await put(blobs, "a", b"second")
    assert await content(blobs, "a") == b"second"


async def test_a_deleted_blob_is_missing_and_deleting_it_again_does_nothing(blobs: ObjectBlobs) -> None:
    await put(blobs, "a/b", b"x")
    await blobs.delete("a/b")
    await blobs.delete("a/b")
    for offset in (0, 1):
        with pytest.raises(BlobMissing, match="a/b"):
            await content(blobs, "a/b", offset)


@pytest.mark.parametrize("kind", BUCKET_PARAMS)
async def test_a_bucket_that_does_not_exist_is_named_as_the_reason(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    url = new_bucket(request, kind).replace("/signoff", "/missing")
    blobs = open_blobs(url, tmp_path)
    for size in (1, 10 * MEGABYTE):
        with pytest.raises(Overloaded, match=rf"{url} does not exist; create it, or change `blob_url`"):
            await put(blobs, "a", b"x" * size)
    with pytest.raises(Overloaded, match=url):
        await blobs.check()
    for offset in (0, 1):
        with pytest.raises(Overloaded, match=url):
            await content(blobs, "a", offset)
    with pytest.raises(Overloaded, match=url):
        await blobs.delete("a")


async def test_a_folder_that_does_not_exist_any_more_is_named_as_the_reason(tmp_path: Path) -> None:
    blobs = open_blobs(None, tmp_path / "blobs")
    await blobs.delete("files/a")
    (tmp_path / "blobs").rmdir()
    with pytest.raises(Overloaded, match=f"the folder {tmp_path / 'blobs'} does not exist"):
        await content(blobs, "files/a")
    with pytest.raises(Overloaded, match=f"the folder {tmp_path / 'blobs'} does not exist"):
        await blobs.delete("files/a")
    await put(blobs, "files/a", b"x")
    assert await content(blobs, "files/a") == b"x"


@pytest.mark.parametrize("name", ["", "/a", "a/", "../a", "a/../b", "a//b", ".a", "a b", "a#1", "ä", "a\0"])
async def test_a_name_that_could_lead_elsewhere_is_refused(blobs: ObjectBlobs, name: str) -> None:
    with pytest.raises(ValueError, match="name of a blob"):
        await put(blobs, name, b"x")
    with pytest.raises(ValueError, match="name of a blob"):
        await content(blobs, name)
    with pytest.raises(ValueError, match="name of a blob"):
        await blobs.delete(name)


async def test_a_check_writes_and_reads_and_leaves_nothing(blobs: ObjectBlobs) -> None:
    assert (await blobs.check()).endswith("can be written and read")
    with pytest.raises(BlobMissing):
        await content(blobs, "probe/signoff")


async def test_what_killed_writers_left_in_a_folder_is_purged(tmp_path: Path) -> None:
    blobs = open_blobs(f"file://{tmp_path}", tmp_path)
    await put(blobs, "files/whole", b"x")
    left = tmp_path / "files" / "file-1#1"
    left.write_bytes(b"x")
    written_us = left.stat().st_mtime_ns // 1000
    assert await blobs.purge_partial(written_us - 1) == 0
    assert await blobs.purge_partial(written_us + 1) == 1
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["whole"]


async def test_a_folder_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    blobs = open_blobs(None, tmp_path / "blobs")
    (tmp_path / "blobs" / "files").write_bytes(b"a file where a folder should be")
    with pytest.raises(Overloaded, match=r"^The blob store cannot be used now: [^\n]*$"):
        await put(blobs, "files/a", b"x")


async def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    open_blobs(None, tmp_path / "blobs")
    assert (tmp_path / "blobs").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("url", ["ftp://host/a", "nonsense", "http://host/a", "s3://"])
def test_a_url_of_no_known_store_is_refused_with_the_known_ones(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="blob_url"):
        open_blobs(url, tmp_path)


@pytest.mark.parametrize("existing", ["blobs", "blobs/files"])
async def test_only_the_owner_can_read_blobs_whatever_their_folder_allows(existing: str, tmp_path: Path) -> None:
    (tmp_path / existing).mkdir(mode=0o755, parents=True)
    before = os.umask(0o022)
    try:
        blobs = open_blobs(None, tmp_path / "blobs")
        async with blobs.write("files/a") as writer:
            await writer.write(b"x" * 20 * MEGABYTE)
            partial = [each for each in (tmp_path / "blobs" / "files").iterdir() if "#" in each.name]
            if existing == "blobs":  # the folder is new
                assert partial
                assert oct((tmp_path / "blobs" / "files").stat().st_mode & 0o777) == "0o700"
        assert oct((tmp_path / "blobs" / "files" / "a").stat().st_mode & 0o777) == "0o600"
    finally:
        os.umask(before)


@pytest.mark.long
async def test_a_download_lasts_as_long_as_bytes_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        times = b"Last-Modified: Tue, 01 Dec 2026 00:00:00 GMT\r\n"
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "a"\r\n%b\r\n' % (DRIPS, times))
        for _ in range(DRIPS):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1)  # the server is slow
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "a"), ("REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert await content(open_blobs("s3://slow", tmp_path), "a") == b"x" * DRIPS
