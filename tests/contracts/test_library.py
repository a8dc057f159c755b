"""Contract tests of stores: prompts, pipelines and functions."""

import asyncio
from typing import Any

import pytest

from signoff.core.filters import MAX_PAGE_BYTES, LibraryFilter
from signoff.core.pipelines.composed import PRODUCTION, Pipeline, Prompt
from signoff.core.pipelines.function import Function, Param
from signoff.core.pipelines.grammar import parse
from signoff.errors import Conflict, LibraryItemNotFound, NameTaken, SignoffError, VersionConflict
from support.stores import AStore, listening, together

pytestmark = pytest.mark.anyio

ANN, BOB = 1, 2


def a_prompt(name: str = "greet", body: str = "Hello {name}", **more: Any) -> Prompt:
    return Prompt(**({"name": name, "body": body, "user_id": ANN} | more))


def a_pipeline(name: str, body: str, **more: Any) -> Pipeline:
    return Pipeline(**({"name": name, "body": body, "tree": parse(body), "user_id": ANN} | more))


def a_function(name: str, **more: Any) -> Function:
    return Function(**({"name": name, "params": (Param(name="x", type="string"),), "digest": "d"} | more))


async def names(store: AStore, **criteria: Any) -> list[str]:
    return [item.name for item in await store.library.list(LibraryFilter(**criteria))]


async def is_refused(call: Any, error: type[SignoffError]) -> bool:
    try:
        await call
    except error:
        return True
    return False


async def test_of_concurrent_saves_from_the_same_version_one_succeeds(store: AStore, other: AStore) -> None:
    first = await store.library.put(a_prompt())
    new = a_prompt(id=first.id, body="new")
    saves = [each.library.put(new, expected_version=1) for each in (store, other) * 3]
    assert (await together(is_refused(save, VersionConflict) for save in saves)).count(False) == 1
    assert [item.version for item in await store.library.versions(first.id)] == [2, 1]


async def test_every_save_creates_a_version_and_keeps_the_old_ones(store: AStore) -> None:
    first = await store.library.put(a_prompt(message="the first", model="m"))
    assert (first.version, first.labels, first.id > 0, first.created_at > 0) == (1, (PRODUCTION,), True, True)
    second = await store.library.put(a_prompt(id=first.id, body="Hi {name}"))

    assert (second.id, second.version, second.labels) == (first.id, 2, (PRODUCTION,))
    assert await store.library.get("greet") == second
    assert await store.library.get(first.id) == second
    old = await store.library.get("greet", 1)
    assert old is not None
    assert (old.body, old.message, old.labels) == ("Hello {name}", "the first", ())
    assert [item.version for item in await store.library.versions(first.id)] == [2, 1]
    assert [item.version for item in await store.library.versions(first.id, before=2, limit=1)] == [1]


async def test_a_pipeline_is_loaded_with_its_tree(store: AStore) -> None:
    body = 'f("a, (b)", -1.5e3, true, null, g(x=y, 12345678901234567890123))'
    saved = await store.library.put(a_pipeline("p", body))

    loaded = await store.library.get("p")
    assert loaded == saved
    assert isinstance(loaded, Pipeline)
    assert (loaded.body, loaded.tree) == (body, parse(body))


async def test_a_label_names_one_version_and_can_be_moved(store: AStore) -> None:
    first = await store.library.put(a_prompt())
    second = await store.library.put(a_prompt(id=first.id, body="2"), label="staging")
    third = await store.library.put(a_prompt(id=first.id, body="3"), label=None)

    assert (second.labels, third.labels) == (("staging",), ())
    for version, body in [(PRODUCTION, "Hello {name}"), ("staging", "2"), (3, "3")]:
        prompt = await store.library.get("greet", version)
        assert prompt is not None
        assert prompt.body == body
    assert await store.library.label(first.id, PRODUCTION, 3)
    prompt = await store.library.get("greet")
    assert prompt is not None
    assert (prompt.body, prompt.labels) == ("3", (PRODUCTION,))
    assert not await store.library.label(first.id, PRODUCTION, 4)
    assert not await store.library.label(first.id + 1, "x", 1)
    assert await store.library.label(first.id, "staging", None)
    assert not await store.library.label(first.id, "staging", None)
    assert await store.library.get("greet", "staging") is None


async def test_a_first_version_is_always_labelled_production(store: AStore) -> None:
    prompt = await store.library.put(a_prompt(), label="staging")

    assert prompt.labels == (PRODUCTION, "staging")
    assert await store.library.get("greet") == await store.library.get("greet", "staging") == prompt


async def test_a_name_belongs_to_one_item(store: AStore) -> None:
    await store.library.put(a_prompt("taken"))
    await store.library.sync([a_function("add")])

    assert await is_refused(store.library.put(a_prompt("taken", user_id=BOB)), NameTaken)
    assert await is_refused(store.library.put(a_pipeline("taken", "f()")), NameTaken)
    assert await is_refused(store.library.put(a_prompt("add")), NameTaken)
    synced = await store.library.sync([a_function("taken"), a_function("add")])
    assert (synced.created, synced.deleted, synced.conflicts) == ((), (), ("taken",))
    assert await names(store) == ["taken"]
    assert (await store.library.put(a_prompt("Taken"))).version == 1


async def test_of_concurrent_saves_of_a_new_name_one_succeeds(store: AStore, other: AStore) -> None:
    async def take(turn: int) -> bool:
        library = [store, other][turn % 2].library
        item = [a_prompt("one", user_id=turn), a_pipeline("one", "f()")][turn // 2 % 2]
        return await is_refused(library.put(item), NameTaken)

    outcomes = await together(take(turn) for turn in range(20))
    assert outcomes.count(False) == 1
    assert await names(store) == await names(other) == ["one"]


async def test_concurrent_saves_of_one_item_all_become_versions(store: AStore, other: AStore) -> None:
    prompt = await store.library.put(a_prompt())
    saved = await together(
        [store, other][turn % 2].library.put(a_prompt(id=prompt.id, body=str(turn))) for turn in range(20)
    )

    versions = await store.library.versions(prompt.id)
    assert [version.version for version in versions] == [*range(21, 0, -1)]
    assert {(version.version, version.body) for version in saved} == {
        (version.version, version.body) for version in versions if version.version > 1
    }
    assert [version.version for version in versions if version.labels] == [21]


async def test_an_unknown_item_gets_no_version(store: AStore) -> None:
    prompt = await store.library.put(a_prompt())

    assert await is_refused(store.library.put(a_prompt(id=prompt.id + 1)), LibraryItemNotFound)
    assert await is_refused(store.library.put(a_pipeline("greet", "f()", id=prompt.id)), LibraryItemNotFound)
    assert [item.version for item in await store.library.versions(prompt.id)] == [1]
    for key, version in [("nobody", PRODUCTION), ("greet", "staging"), ("greet", 2), (prompt.id + 1, 1)]:
        assert await store.library.get(key, version) is None


async def test_a_list_contains_own_and_shared_items_in_pages(store: AStore) -> None:
    for number in range(5):
        await store.library.put(a_prompt(f"ann{number}", user_id=ANN))
    shared = await store.library.put(a_prompt("bobs", user_id=BOB, shared=True))
    await store.library.put(a_pipeline("bobs2", "f()", user_id=BOB))

    assert await names(store, user_id=ANN) == [*(f"ann{number}" for number in range(5)), "bobs"]
    assert await names(store, user_id=ANN, limit=2, after="ann1") == ["ann2", "ann3"]
    assert await names(store, user_id=BOB) == ["bobs", "bobs2"]
    assert await names(store, kind="pipeline") == ["bobs2"]
    assert len(await names(store)) == 7
    assert await store.library.share(shared.id, shared=False)
    assert "bobs" not in await names(store, user_id=ANN)
    assert not await store.library.share(999, shared=True)


async def test_a_list_shows_the_production_version(store: AStore) -> None:
    prompt = await store.library.put(a_prompt())
    await store.library.put(a_prompt(id=prompt.id, body="new", shared=True), label=None)

    [listed] = await store.library.list(LibraryFilter())
    assert (listed.version, listed.body, listed.labels, listed.shared) == (1, "Hello {name}", (PRODUCTION,), True)


async def test_callers_of_a_name_are_searched_in_reachable_versions_only(store: AStore) -> None:
    await store.library.put(a_pipeline("one", "f(g(x), greet(name=y))"))
    two = await store.library.put(a_pipeline("two", "greet(a)"))
    await store.library.put(a_pipeline("two", "other(a)", id=two.id), label=None)
    three = await store.library.put(a_pipeline("three", "greet(a)"))
    await store.library.put(a_pipeline("three", "other(a)", id=three.id))
    await store.library.put(a_pipeline("four", "greeting(a)", user_id=BOB))

    assert await names(store, calls="greet") == ["one", "two"]
    assert await names(store, calls="greet", after="one") == ["two"]
    assert await names(store, calls="greet", user_id=BOB) == []
    assert await names(store, calls="g") == ["one"]
    assert await names(store, calls="other") == ["three", "two"]


async def test_a_dropped_item_is_gone_and_its_id_is_not_reused(store: AStore) -> None:
    pipeline = await store.library.put(a_pipeline("p", "f()"))
    assert await store.library.drop(pipeline.id)
    assert not await store.library.drop(pipeline.id)

    assert await store.library.get("p") is None
    assert await store.library.versions(pipeline.id) == []
    assert await names(store, calls="f") == []
    recreated = await store.library.put(a_pipeline("p", "f()"))
    assert (recreated.version, recreated.id > pipeline.id) == (1, True)


async def test_a_sync_registers_new_functions_and_drops_missing_ones(store: AStore) -> None:
    first = await store.library.sync([a_function("b"), a_function("a")])
    assert (first.created, first.deleted) == (("a", "b"), ())
    changed = a_function("a", doc="new", digest="e")
    second = await store.library.sync([changed, a_function("c")])

    assert (second.created, second.deleted) == (("c",), ("b",))
    assert await store.library.functions() == [changed, a_function("c")]
    third = await store.library.sync([a_function("c")])
    assert (third.created, third.deleted) == ((), ("a",))


async def test_a_sync_keeps_the_functions_of_an_unreadable_file(store: AStore) -> None:
    await store.library.sync([a_function("mine", module="custom_mine"), a_function("add")])
    synced = await store.library.sync([a_function("add")], unread=["custom_mine"])

    assert (synced.created, synced.deleted) == ((), ())
    assert [function.name for function in await store.library.functions()] == ["add", "mine"]


async def test_of_two_concurrent_syncs_one_result_remains(store: AStore, other: AStore) -> None:
    first, second = [a_function("a"), a_function("b")], [a_function("b"), a_function("c")]
    await together([store.library.sync(first), other.library.sync(second)])

    remaining = [function.name for function in await store.library.functions()]
    assert remaining in (["a", "b"], ["b", "c"])


async def test_every_change_of_the_library_is_counted_and_announced(url: str, store: AStore) -> None:
    async with listening(url) as (other, recorder):
        before = await other.versions()
        prompt = await store.library.put(a_prompt())
        await store.library.label(prompt.id, "x", 1)
        await store.library.share(prompt.id, shared=True)
        await store.library.drop(prompt.id)
        await store.library.sync([])
        await recorder.hears(("compositions", ""), ("any", ""))
        async with asyncio.timeout(60):
            while await other.versions() != before | {
                "compositions": before["compositions"] + 4,
                "functions": before["functions"] + 1,
            }:
                await asyncio.sleep(0.01)


async def test_a_page_ends_at_its_bytes_and_has_one_item_at_least(store: AStore) -> None:
    for number in range(5):
        await store.library.put(a_prompt(f"p{number}", "x" * 1000))
    for max_bytes, lengths in ((1, [1] * 5), (1500, [2, 2, 1]), (10**9, [5])):
        pages, after, may_continue = list[list[str]](), "", True
        while may_continue:
            page = await store.library.list(LibraryFilter(after=after, limit=10, max_bytes=max_bytes))
            pages.append([item.name for item in page])
            after, may_continue = page[-1].name, page.may_continue
        assert [len(page) for page in pages] == lengths
        assert [name for page in pages for name in page] == [f"p{number}" for number in range(5)]
    # and so does a page of versions, whose size is that of all lists
    one = await store.library.get("p0")
    assert one is not None
    half = MAX_PAGE_BYTES // 2
    for _ in range(3):
        await store.library.put(a_prompt("p0", "y" * half, id=one.id))
    newest = await store.library.versions(one.id)
    assert ([item.version for item in newest], newest.may_continue) == ([4, 3], True)
    oldest = await store.library.versions(one.id, before=3)
    assert ([item.version for item in oldest], oldest.may_continue) == ([2, 1], False)


async def test_a_user_may_have_so_many_versions_and_characters(store: AStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signoff.core.pipelines.composed.MAX_VERSIONS_OF_USER", 3)
    monkeypatch.setattr("signoff.core.pipelines.composed.MAX_CHARACTERS_OF_USER", 10)
    one = await store.library.put(a_prompt("one", "12345"))
    await store.library.put(a_prompt("one", "1", id=one.id))
    with pytest.raises(Conflict, match="at most 10 characters"):
        await store.library.put(a_prompt("two", "12345"))
    await store.library.put(a_prompt("two", "1234"))
    with pytest.raises(Conflict, match="at most 3 versions"):
        await store.library.put(a_prompt("one", "", id=one.id))
    # another user has bounds of their own, and what was removed makes room
    await store.library.put(a_prompt("three", "1234567890", user_id=BOB))
    await store.library.drop(one.id)
    assert (await store.library.put(a_prompt("four", "123456"))).version == 1
