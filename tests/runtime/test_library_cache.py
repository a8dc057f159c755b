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


class RecordingLibrary:
    """A library that records the keys that are read from it, and can be blocked."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.requested = list[str | int]()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def get(self, key: str | int, at: str | int = "production") -> LibraryItem | None:
        self.requested.append(key)
        item = await self._inner.get(key, at)
        await self.go_on.wait()
        return item


def a_prompt(name: str, body: str = "x", **changes: Any) -> Prompt:
    return Prompt(name=name, body=body, user_id=1, **changes)


async def test_existing_and_missing_prompts_are_read_once(tmp_path: Path) -> None:
    async with opened(f"memory:{tmp_path}") as store:
        prompt = await store.library.put(a_prompt("p"))
        recording = RecordingLibrary(store.library)
        cache = LibraryCache(recording)  # type: ignore[arg-type]
        for _ in range(3):
            assert await cache.find("p") == prompt
            assert await cache.find("nobody") is None
        assert recording.requested == ["p", "nobody"]
        assert await cache.find("nobody", refresh=True) is None
        assert recording.requested == ["p", "nobody", "nobody"]
        for name in ("", "a\nb", "a\0b", "x" * 101):
            assert await cache.find(name) is None
        assert len(recording.requested) == 3


async def test_a_prompt_that_changes_during_a_read_is_not_cached(tmp_path: Path) -> None:
    async with opened(f"memory:{tmp_path}") as store:
        prompt = await store.library.put(a_prompt("p", "old"))
        recording = RecordingLibrary(store.library)
        cache = LibraryCache(recording)  # type: ignore[arg-type]
        # given a lookup that has read the old version and has not returned yet
        recording.go_on.clear()
        lookup = asyncio.ensure_future(cache.find("p"))
        while not recording.requested:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        # when a new version is announced before it returns
        await store.library.put(a_prompt("p", "new", id=prompt.id))
        cache.invalidate()
        recording.go_on.set()
        # then only the caller of that lookup gets the old version
        assert await lookup == prompt
        cached = await cache.find("p")
        assert cached is not None
        assert cached.body == "new"


async def test_copies_are_bounded_in_number_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MAX_ITEMS", 10)
    monkeypatch.setattr(library, "MAX_CHARACTERS", 1000)
    async with opened(f"memory:{tmp_path}") as store:
        for number in range(5):
            await store.library.put(a_prompt(f"big{number}", "x" * 300))
        cache = LibraryCache(store.library)
        for number in range(5):
            await cache.find(f"big{number}")
        assert names(cache) == ["big2", "big3", "big4"]
        assert cache._items.currsize == 900
        await cache.find("big2")
        for number in range(9):
            await cache.find(f"nobody{number}")
        assert names(cache) == ["big2"]
        assert (len(cache._items), cache._items.currsize) == (10, 300)
        cache.invalidate()
        assert (len(cache._items), cache._items.currsize) == (0, 0)


def names(cache: LibraryCache) -> list[str]:
    """Return the names of the items in the cache, in the order in which they were added."""
    return [copy.item.name for _, copy in cache._items.peek_items() if copy.item is not None]


async def test_every_process_uses_the_current_version_of_a_prompt(tmp_path: Path) -> None:
    async with live(tmp_path) as here, live(tmp_path) as there:
        token = await here.token()
        new = {"name": "p", "body": "one {x}", "model": "echo"}
        assert (await here.ask("POST", "/api/prompts", token, json=new))[0] == 201
        # a new prompt is found at once, a changed one after its notification
        assert await prompt_answer(there, token) == "one go"
        for number in ("two", "three"):
            await here.ask("PUT", "/api/prompts/p", token, json={"body": number + " {x}"})
            assert await prompt_answer(here, token) == f"{number} go"

            async def has_changed(number: str = number) -> bool | None:
                return (await prompt_answer(there, token)) == f"{number} go" or None

            await until(has_changed)
        assert (await here.ask("DELETE", "/api/prompts/p", token))[0] == 204

        async def is_gone() -> bool | None:
            return (await there.ask("POST", "/v1/chat/completions", token, json=chat("go", "p")))[0] == 404 or None

        await until(is_gone)


async def prompt_answer(server: Live, token: str) -> str:
    status, response = await server.ask("POST", "/v1/chat/completions", token, json=chat("go", "p"))
    assert status == 200, response
    return words(response)


async def test_functions_that_are_synced_are_called_in_every_process_without_a_restart(tmp_path: Path) -> None:
    async with live(tmp_path) as here, live(tmp_path) as there:
        admin = await here.token("admin")
        folder = tmp_path / "data" / "functions"
        folder.mkdir()
        for text in ("one", "two"):
            (folder / "custom_mine.py").write_text(f"def mine(): return {text!r}")
            assert (await here.ask("POST", "/api/functions/sync", admin))[0] == 200

            async def has_changed(text: str = text) -> bool | None:
                function = (await there.services.caches.functions.registered()).get("mine")
                if function is None:
                    return None
                return await there.services.caches.functions.call(function, {}, nothing) == text or None

            await until(has_changed)


async def nothing() -> list[str]:
    return []
