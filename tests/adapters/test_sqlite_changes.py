"""Notifications between processes with one SQLite file: exact while they arrive, and `any` where some are missed."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from signoff.store import Topic
from signoff.stores.changes import ChangeFeed
from signoff.stores.sqlite_changes import SqliteChangeFeed
from support.stores import inserted, listening, opened, until

pytestmark = pytest.mark.anyio


class Feed:
    """Feed of one process, and what it has received."""

    def __init__(self, folder: Path) -> None:
        self.received = list[tuple[Topic, str]]()
        changes = ChangeFeed()
        changes.listen(lambda topic, name: self.received.append((topic, name)))
        self.feed = SqliteChangeFeed(folder, changes)

    async def has(self, item: tuple[Topic, str]) -> None:
        """Wait until `item` has arrived."""

        async def has_arrived() -> bool | None:
            return item in self.received or None

        await until(has_arrived)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the path of a folder that is not there yet."""
    return tmp_path / "sockets"


@pytest.fixture
async def feeds(folder: Path) -> AsyncIterator[tuple[Feed, Feed]]:
    """Yield two feeds that have started."""
    pair = Feed(folder), Feed(folder)
    assert all(each.feed.start() for each in pair)
    yield pair
    for each in pair:
        each.feed.close()


async def test_another_process_is_told_what_has_changed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    async with opened(url) as store, listening(url) as (_, recorder):
        job = await inserted(store)
        await recorder.hears(("job", job.id))
        await recorder.hears(("due", job.id))


async def test_a_process_does_not_tell_itself(feeds: tuple[Feed, Feed]) -> None:
    one, other = feeds
    one.feed.publish([("job", "a")])
    await other.has(("job", "a"))
    assert one.received == []


async def test_a_process_that_was_killed_is_forgotten(folder: Path, feeds: tuple[Feed, Feed]) -> None:
    one, other = feeds
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as killed:  # a socket that is closed keeps its file
        killed.bind(str(folder / "killed"))

    one.feed.publish([("job", "a")])

    await other.has(("job", "a"))
    assert not (folder / "killed").exists()


async def test_what_is_no_socket_in_the_folder_is_left_alone_and_fails_no_write(tmp_path: Path) -> None:
    folder = tmp_path / "store.db-sockets"
    (folder / "directory").mkdir(parents=True)
    (folder / "file").write_text("mine")
    url = f"sqlite:///{tmp_path / 'store.db'}"
    async with opened(url) as store, listening(url) as (_, recorder):
        job = await inserted(store)
        await recorder.hears(("job", job.id))
    assert (folder / "file").read_text() == "mine"
    assert (folder / "directory").is_dir()


async def test_a_foreign_socket_in_the_folder_keeps_no_process_from_being_told(
    folder: Path, feeds: tuple[Feed, Feed]
) -> None:
    names = sorted(path.name for path in folder.iterdir())
    foreign = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(8)]
    for number, each in enumerate(foreign):  # whatever the order of the folder is, some come before the others
        each.bind(str(folder / f"{number}"))
        each.listen()
    one, other = feeds
    for number in range(50):
        one.feed.publish([("job", str(number))])
        await other.has(("job", str(number)))
    for each in foreign:
        each.close()
    assert {*names} <= {path.name for path in folder.iterdir()}


async def test_a_process_whose_own_socket_failed_still_tells_the_others(feeds: tuple[Feed, Feed], folder: Path) -> None:
    mute = Feed(folder)
    mute.feed.publish([("job", "a")])
    for feed in feeds:
        await feed.has(("job", "a"))
    mute.feed.close()


async def test_a_process_that_missed_something_is_told_so_when_it_can_take_more(feeds: tuple[Feed, Feed]) -> None:
    one, other = feeds
    for number in range(20_000):  # the loop reads none of them meanwhile
        one.feed.publish([("job", str(number))])

    await other.has(("any", ""))

    assert other.received[0] == ("job", "0")
    assert len(other.received) < 20_000


async def test_very_many_changes_at_once_are_any_change(feeds: tuple[Feed, Feed]) -> None:
    one, other = feeds
    one.feed.publish([("job", str(number)) for number in range(1000)])
    await other.has(("any", ""))
    assert other.received == [("any", "")]


@pytest.mark.parametrize("name", ["x", "x" * 120])
async def test_the_address_of_a_socket_may_be_long(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    one, other = Feed(folder), Feed(folder)
    assert one.feed.start()
    assert other.feed.start()
    one.feed.publish([("people", "")])
    await other.has(("people", ""))
    one.feed.close()
    other.feed.close()
    assert list(folder.iterdir()) == []


async def test_without_sockets_another_process_still_learns_that_something_has_changed(tmp_path: Path) -> None:
    (tmp_path / "store.db-sockets").write_text("no folder")
    url = f"sqlite:///{tmp_path / 'store.db'}"
    async with opened(url) as store, listening(url) as (_, recorder):
        await inserted(store)
        await recorder.hears(("any", ""))


async def test_garbage_in_a_socket_is_ignored(folder: Path, feeds: tuple[Feed, Feed]) -> None:
    one, other = feeds
    [path] = [path for path in folder.iterdir() if path == other.feed._path]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for datagram in (b"", b"\xff\xfe", b"unknown topic", b"x" * 5000, b"\n\n"):
            stranger.sendto(datagram, str(path))
    one.feed.publish([("job", "a")])
    await other.has(("job", "a"))
    assert other.received == [("job", "a")]
