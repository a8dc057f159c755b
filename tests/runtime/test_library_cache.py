"""The process-local caches of prompts and functions: bounded, and never older than the last notification."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from signoff.core.pipelines.composed import LibraryItem, Prompt
from signoff.runtime import library
from signoff.runtime.library import LibraryCache
from support.live_server import Live, chat, live, until, words
from support.stores import opened

pytestmark = pytest.mark.anyio


class Watched:
    """A library that records the keys that are read from it, and can be blocked."""

    def __init__(self, kept: Any) -> None:
        self._kept = kept
        self.asked = list[str | int]()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def get(self, key: str | int, at: str | int = "production") -> LibraryItem | None:
        self.asked.append(key)
        found = await self._kept.get(key, at)
        await self.go_on.wait()
        return found


def a_prompt(name: str, body: str = "x", **more: Any) -> Prompt:
    return Prompt(name=name, body=body, user_id=1, **more)


async def test_what_was_found_is_asked_for_once_and_what_is_not_there_too(tmp_path: Path) -> None:
    async with opened(f"memory:{tmp_path}") as store:
        made = await store.library.put(a_prompt("p"))
        watched = Watched(store.library)
        part = LibraryCache(watched)  # type: ignore[arg-type]
        for _ in range(3):
            assert await part.find("p") == made
            assert await part.find("nobody") is None
        assert watched.asked == ["p", "nobody"]
        assert await part.find("nobody", refresh=True) is None
        assert watched.asked == ["p", "nobody", "nobody"]
        for name in ("", "a\nb", "a\0b", "x" * 101):
            assert await part.find(name) is None
        assert len(watched.asked) == 3


async def test_what_changed_while_it_was_read_is_not_kept(tmp_path: Path) -> None:
    async with opened(f"memory:{tmp_path}") as store:
        made = await store.library.put(a_prompt("p", "old"))
        watched = Watched(store.library)
        part = LibraryCache(watched)  # type: ignore[arg-type]
        # given a lookup that has read the old version and has not returned yet
        watched.go_on.clear()
        look = asyncio.ensure_future(part.find("p"))
        while not watched.asked:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        # when a new version is announced before it returns
        await store.library.put(a_prompt("p", "new", id=made.id))
        part.invalidate()
        watched.go_on.set()
        # then only the caller of that lookup gets the old version
        assert await look == made
        found = await part.find("p")
        assert found is not None
        assert found.body == "new"


async def test_copies_are_bounded_in_number_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MAX_ITEMS", 10)
    monkeypatch.setattr(library, "MAX_CHARACTERS", 1000)
    async with opened(f"memory:{tmp_path}") as store:
        for number in range(5):
            await store.library.put(a_prompt(f"big{number}", "x" * 300))
        part = LibraryCache(store.library)
        for number in range(5):
            await part.find(f"big{number}")
        assert names(part) == ["big2", "big3", "big4"]
        assert part._items.currsize == 900
        await part.find("big2")
        for number in range(9):
            await part.find(f"nobody{number}")
        assert names(part) == ["big2"]
        assert (len(part._items), part._items.currsize) == (10, 300)
        part.invalidate()
        assert (len(part._items), part._items.currsize) == (0, 0)


def names(part: LibraryCache) -> list[str]:
    """Return the names of the items in the cache, in the order in which they were added."""
    return [copy.item.name for _, copy in part._items.peek_items() if copy.item is not None]


async def test_every_process_asks_the_prompt_as_it_is_now(tmp_path: Path) -> None:
    async with live(tmp_path) as here, live(tmp_path) as there:
        token = await here.token()
        new = {"name": "p", "body": "one {x}", "model": "echo"}
        assert (await here.ask("POST", "/api/prompts", token, json=new))[0] == 201
        # a new prompt is found at once, a changed one after its notification
        assert await asked(there, token) == "one go"
        for number in ("two", "three"):
            await here.ask("PUT", "/api/prompts/p", token, json={"body": number + " {x}"})
            assert await asked(here, token) == f"{number} go"

            async def is_told(number: str = number) -> bool | None:
                return (await asked(there, token)) == f"{number} go" or None

            await until(is_told)
        assert (await here.ask("DELETE", "/api/prompts/p", token))[0] == 204

        async def is_gone() -> bool | None:
            return (await there.ask("POST", "/v1/chat/completions", token, json=chat("go", "p")))[0] == 404 or None

        await until(is_gone)


async def asked(server: Live, token: str) -> str:
    status, told = await server.ask("POST", "/v1/chat/completions", token, json=chat("go", "p"))
    assert status == 200, told
    return words(told)


async def test_functions_that_are_synced_are_called_in_every_process_without_a_restart(tmp_path: Path) -> None:
    async with live(tmp_path) as here, live(tmp_path) as there:
        admin = await here.token("admin")
        folder = tmp_path / "data" / "functions"
        folder.mkdir()
        for text in ("one", "two"):
            (folder / "custom_mine.py").write_text(f"def mine(): return {text!r}")
            assert (await here.ask("POST", "/api/functions/sync", admin))[0] == 200

            async def is_told(text: str = text) -> bool | None:
                function = (await there.services.caches.functions.registered()).get("mine")
                if function is None:
                    return None
                return await there.services.caches.functions.call(function, {}, nothing) == text or None

            await until(is_told)


async def nothing() -> list[str]:
    return []
