"""Contract tests of stores: named review policies and their versions."""

from __future__ import annotations

import msgspec
import pytest

from signoff.core.audit import AuditFilter
from signoff.core.reviews.policy import Escalation, PolicyVersion
from signoff.core.reviews.rules import Action, Budget, ReviewPolicy, Rule
from signoff.errors import Conflict, VersionConflict
from support.stores import AStore, together

pytestmark = pytest.mark.anyio

RULES = (
    Rule(if_="answer.length > 3", then="hold", queue="legal", on_deadline=Escalation("boss"), votes=2),
    Rule(if_="true", then="reject", code="no", message="No."),
)


def a_policy(name: str, target: str | None = None, **more: object) -> ReviewPolicy:
    """Return a policy for a target of its own; `more` overrides its fields."""
    fields = {"rules": RULES, "default": Action(then="hold"), "user_id": 3} | more
    return ReviewPolicy(name=name, target=target or name, **fields)  # type: ignore[arg-type]


async def test_each_save_is_a_version_and_the_newest_applies(store: AStore, other: AStore) -> None:
    budget = Budget(answers=10_000, share=0.02, audit_rate=0.1)
    first, second = await store.policies.put(a_policy("one")), await other.policies.put(a_policy("one", budget=budget))
    assert (first.version, second.version, second.rules, second.budget) == (1, 2, RULES, budget)
    assert await other.policies.get("one") == second
    assert [await other.policies.get("one", number) for number in (1, 2, 3)] == [first, second, None]
    assert await store.policies.current() == [PolicyVersion("one", 2)]
    assert await store.policies.versions("one", limit=1) == [second]
    assert await store.policies.versions("one", before=2) == [first]


async def test_policies_are_listed_by_name_in_pages(store: AStore) -> None:
    saved = [await store.policies.put(a_policy(name)) for name in ("c", "a", "b")]
    assert await store.policies.page(limit=2) == [saved[1], saved[2]]
    assert await store.policies.page(after="b", limit=2) == [saved[0]]


async def test_two_policies_do_not_share_a_target(store: AStore) -> None:
    await store.policies.put(a_policy("one", "gpt-*"))
    with pytest.raises(Conflict, match="'one'"):
        await store.policies.put(a_policy("two", "gpt-*"))
    await store.policies.put(a_policy("one", "gpt-4*"))
    await store.policies.put(a_policy("two", "gpt-*"))


async def test_the_versions_of_a_deleted_policy_stay_and_their_numbers_go_on(store: AStore) -> None:
    first = await store.policies.put(a_policy("one"))
    assert await store.policies.drop("one") is True
    assert await store.policies.drop("one") is False
    assert (await store.policies.get("one"), await store.policies.get("one", 1)) == (None, first)
    assert (await store.policies.put(a_policy("one"))).version == 2


async def test_saves_at_the_same_time_get_numbers_of_their_own(store: AStore, other: AStore) -> None:
    saved = await together([each.policies.put(a_policy("one")) for each in (store, other) * 3])
    assert sorted(policy.version for policy in saved) == [1, 2, 3, 4, 5, 6]


async def test_changes_of_policies_are_announced_and_audited(store: AStore) -> None:
    versions = await store.versions()
    saved = await store.policies.put(a_policy("one"))
    await store.policies.drop("one")
    assert (await store.versions())["policies"] == versions["policies"] + 2
    entries = await store.audit.page(AuditFilter(subject="policy:one"))
    assert [entry.action for entry in entries] == ["policy_removed", "policy_created"]
    assert msgspec.json.encode(entries[0].before, order="sorted") == msgspec.json.encode(saved, order="sorted")


async def test_of_concurrent_saves_from_the_same_version_one_succeeds(store: AStore, other: AStore) -> None:
    async def save(each: AStore, expected_version: int) -> bool:
        try:
            await each.policies.put(a_policy("one"), expected_version=expected_version)
        except VersionConflict:
            return False
        return True

    assert (await together([save(each, 0) for each in (store, other) * 3])).count(True) == 1
    assert (await together([save(each, 1) for each in (store, other) * 3])).count(True) == 1
    assert await store.policies.drop("one")
    assert [await save(store, version) for version in (2, 1, 0)] == [False, False, True]
    assert [each.version for each in await store.policies.versions("one")] == [3, 2, 1]
