"""The contract of every store for prompts, pipelines and functions."""

import asyncio
from typing import Any

import pytest

from signoff.core.filters import LibraryFilter
from signoff.core.pipelines.composed import PRODUCTION, Pipeline, Prompt
from signoff.core.pipelines.function import Function, Param
from signoff.core.pipelines.grammar import parse
from signoff.errors import LibraryItemNotFound, NameTaken, SignoffError
from support.stores import AStore, listening, together

pytestmark = pytest.mark.anyio

ANN, BOB = 1, 2


def a_prompt(name: str = "greet", body: str = "Hello {name}", **more: Any) -> Prompt:
    return Prompt(**({"name": name, "body": body, "user_id": ANN} | more))


def a_pipeline(name: str, body: str, **more: Any) -> Pipeline:
    return Pipeline(**({"name": name, "body": body, "tree": parse(body), "user_id": ANN} | more))


def a_function(name: str, **more: Any) -> Function:
    return Function(**({"name": name, "params": (Param(name="x", reads="text"),), "digest": "d"} | more))


async def names(store: AStore, **which: Any) -> list[str]:
    return [one.name for one in await store.library.list(LibraryFilter(**which))]


async def refused(work: Any, error: type[SignoffError]) -> bool:
    try:
        await work
    except error:
        return True
    return False


async def test_each_save_is_a_version_of_its_own_and_the_old_ones_stay(store: AStore) -> None:
    first = await store.library.put(a_prompt(message="the first", model="m"))
    assert (first.version, first.labels, first.id > 0, first.created_at > 0) == (1, (PRODUCTION,), True, True)
    second = await store.library.put(a_prompt(id=first.id, body="Hi {name}"))

    assert (second.id, second.version, second.labels) == (first.id, 2, (PRODUCTION,))
    assert await store.library.get("greet") == second
    assert await store.library.get(first.id) == second
    old = await store.library.get("greet", 1)
    assert old is not None
    assert (old.body, old.message, old.labels) == ("Hello {name}", "the first", ())
    assert [one.version for one in await store.library.versions(first.id)] == [2, 1]
    assert [one.version for one in await store.library.versions(first.id, before=2, limit=1)] == [1]


async def test_a_pipeline_comes_back_with_its_tree(store: AStore) -> None:
    body = 'f("a, (b)", -1.5e3, true, null, g(x=y, 12345678901234567890123))'
    made = await store.library.put(a_pipeline("p", body))

    found = await store.library.get("p")
    assert found == made
    assert isinstance(found, Pipeline)
    assert (found.body, found.tree) == (body, parse(body))


async def test_a_label_moves_and_names_one_version(store: AStore) -> None:
    made = await store.library.put(a_prompt())
    second = await store.library.put(a_prompt(id=made.id, body="2"), label="staging")
    third = await store.library.put(a_prompt(id=made.id, body="3"), label=None)

    assert (second.labels, third.labels) == (("staging",), ())
    for at, body in [(PRODUCTION, "Hello {name}"), ("staging", "2"), (3, "3")]:
        found = await store.library.get("greet", at)
        assert found is not None
        assert found.body == body
    assert await store.library.label(made.id, PRODUCTION, 3)
    found = await store.library.get("greet")
    assert found is not None
    assert (found.body, found.labels) == ("3", (PRODUCTION,))
    assert not await store.library.label(made.id, PRODUCTION, 4)
    assert not await store.library.label(made.id + 1, "x", 1)
    assert await store.library.label(made.id, "staging", None)
    assert not await store.library.label(made.id, "staging", None)
    assert await store.library.get("greet", "staging") is None


async def test_a_first_version_is_the_production_one_whatever_its_label(store: AStore) -> None:
    made = await store.library.put(a_prompt(), label="staging")

    assert made.labels == (PRODUCTION, "staging")
    assert await store.library.get("greet") == await store.library.get("greet", "staging") == made


async def test_a_name_is_one_thing(store: AStore) -> None:
    await store.library.put(a_prompt("taken"))
    await store.library.sync([a_function("add")])

    assert await refused(store.library.put(a_prompt("taken", user_id=BOB)), NameTaken)
    assert await refused(store.library.put(a_pipeline("taken", "f()")), NameTaken)
    assert await refused(store.library.put(a_prompt("add")), NameTaken)
    synced = await store.library.sync([a_function("taken"), a_function("add")])
    assert (synced.created, synced.deleted, synced.conflicts) == ((), (), ("taken",))
    assert await names(store) == ["taken"]
    assert (await store.library.put(a_prompt("Taken"))).version == 1


async def test_of_many_who_take_a_name_at_once_one_gets_it(store: AStore, other: AStore) -> None:
    async def take(turn: int) -> bool:
        each = [store, other][turn % 2].library
        thing = [a_prompt("one", user_id=turn), a_pipeline("one", "f()")][turn // 2 % 2]
        return await refused(each.put(thing), NameTaken)

    outcomes = await together(take(turn) for turn in range(20))
    assert outcomes.count(False) == 1
    assert await names(store) == await names(other) == ["one"]


async def test_versions_that_are_saved_at_once_all_stay(store: AStore, other: AStore) -> None:
    made = await store.library.put(a_prompt())
    saved = await together(
        [store, other][turn % 2].library.put(a_prompt(id=made.id, body=str(turn))) for turn in range(20)
    )

    kept = await store.library.versions(made.id)
    assert [one.version for one in kept] == [*range(21, 0, -1)]
    assert {(one.version, one.body) for one in saved} == {(one.version, one.body) for one in kept if one.version > 1}
    assert [one.version for one in kept if one.labels] == [21]


async def test_what_is_not_there_gets_no_version(store: AStore) -> None:
    made = await store.library.put(a_prompt())

    assert await refused(store.library.put(a_prompt(id=made.id + 1)), LibraryItemNotFound)
    assert await refused(store.library.put(a_pipeline("greet", "f()", id=made.id)), LibraryItemNotFound)
    assert [one.version for one in await store.library.versions(made.id)] == [1]
    for key, at in [("nobody", PRODUCTION), ("greet", "staging"), ("greet", 2), (made.id + 1, 1)]:
        assert await store.library.get(key, at) is None


async def test_a_list_has_ones_own_and_what_is_shared_page_by_page(store: AStore) -> None:
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
    made = await store.library.put(a_prompt())
    await store.library.put(a_prompt(id=made.id, body="new", shared=True), label=None)

    [listed] = await store.library.list(LibraryFilter())
    assert (listed.version, listed.body, listed.labels, listed.shared) == (1, "Hello {name}", (PRODUCTION,), True)


async def test_who_calls_a_name_is_found_in_what_can_still_be_asked_for(store: AStore) -> None:
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


async def test_what_is_dropped_is_gone_and_its_id_is_never_another_ones(store: AStore) -> None:
    made = await store.library.put(a_pipeline("p", "f()"))
    assert await store.library.drop(made.id)
    assert not await store.library.drop(made.id)

    assert await store.library.get("p") is None
    assert await store.library.versions(made.id) == []
    assert await names(store, calls="f") == []
    again = await store.library.put(a_pipeline("p", "f()"))
    assert (again.version, again.id > made.id) == (1, True)


async def test_a_sync_registers_what_appeared_and_drops_what_vanished(store: AStore) -> None:
    first = await store.library.sync([a_function("b"), a_function("a")])
    assert (first.created, first.deleted) == (("a", "b"), ())
    changed = a_function("a", doc="new", digest="e")
    second = await store.library.sync([changed, a_function("c")])

    assert (second.created, second.deleted) == (("c",), ("b",))
    assert await store.library.functions() == [changed, a_function("c")]
    third = await store.library.sync([a_function("c")])
    assert (third.created, third.deleted) == ((), ("a",))


async def test_a_file_that_cannot_be_read_keeps_what_is_registered_of_it(store: AStore) -> None:
    await store.library.sync([a_function("mine", module="custom_mine"), a_function("add")])
    synced = await store.library.sync([a_function("add")], unread=["custom_mine"])

    assert (synced.created, synced.deleted) == ((), ())
    assert [function.name for function in await store.library.functions()] == ["add", "mine"]


async def test_two_syncs_at_once_leave_one_of_both(store: AStore, other: AStore) -> None:
    one, two = [a_function("a"), a_function("b")], [a_function("b"), a_function("c")]
    await together([store.library.sync(one), other.library.sync(two)])

    left = [function.name for function in await store.library.functions()]
    assert left in (["a", "b"], ["b", "c"])


async def test_every_change_is_counted_and_told(url: str, store: AStore) -> None:
    async with listening(url) as (other, ear):
        before = await other.versions()
        made = await store.library.put(a_prompt())
        await store.library.label(made.id, "x", 1)
        await store.library.share(made.id, shared=True)
        await store.library.drop(made.id)
        await store.library.sync([])
        await ear.hears(("compositions", ""), ("any", ""))
        async with asyncio.timeout(60):
            while await other.versions() != before | {
                "compositions": before["compositions"] + 4,
                "functions": before["functions"] + 1,
            }:
                await asyncio.sleep(0.01)
