"""Audit log of every store: each change of the configuration leaves one entry, without secrets, for ever."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from signoff.accounts import Limits, People, SignIns, UsageRecords
from signoff.catalog import Catalog, Library, ModelLogs, Secrets, Streams
from signoff.core.access import Token
from signoff.core.audit import Actor, AuditChange, AuditEntry, AuditFilter
from signoff.core.limits import Limit
from signoff.core.model import Model
from signoff.core.oidc import ProviderAccount, ProviderSettings
from signoff.core.pipelines.composed import Prompt
from signoff.core.pipelines.function import Function, Param
from signoff.core.price import Price
from signoff.core.stream import Stream
from signoff.errors import Conflict
from signoff.infra.actor import act_as
from signoff.stores.audit_schema import audit
from signoff.stores.sql import SqlStore
from support.stores import AStore, together

pytestmark = pytest.mark.anyio

ANN = Actor(name="user:ann@example.com", client="192.0.2.7")
SECRETS = ("the-hash", "the-digest", "the-seal")
ISSUER = "https://sso.example.com"
PROVIDER = ProviderSettings(issuer=ISSUER, client_id="signoff", role_claim="role", roles={"u": "user"})
PRICE = Price(model="m", valid_from=1, input=1, output=2)
PROMPT = Prompt(name="greet", body="Hello {name}", user_id=1)
FUNCTION = Function(name="add", params=(Param(name="x", type="string"),), digest="d")
STREAM = Stream(name="s", scheme="amqp", host="h:1", sealed=b"the-seal", requests="in", responses="out")


def account(subject: str, role: Any = "user") -> ProviderAccount:
    return ProviderAccount(issuer=ISSUER, subject=subject, email=f"{subject}@x.org", role=role)


async def add_token(store: AStore, kind: Any, digest: str) -> Token:
    more: dict[str, Any] = {"role": "user", "seconds": 60, "password_hash": "the-hash2"}
    return await store.people.add_token(1, digest, kind=kind, name="t", **more)


async def drop_only_key(store: AStore) -> bool:
    [key] = await store.catalog.keys(None)
    return await store.catalog.drop_key(key.id)


async def item_id(store: AStore) -> int:
    item = await store.library.get("greet", 1)
    assert item is not None
    return item.id


async def put_version(store: AStore) -> None:
    await store.library.put(Prompt(name="greet", body="Hi", user_id=1, id=await item_id(store)))


async def label_it(store: AStore, label: str, version: int | None) -> bool:
    return await store.library.label(await item_id(store), label, version)


async def share_it(store: AStore) -> bool:
    return await store.library.share(await item_id(store), shared=True)


async def drop_it(store: AStore) -> bool:
    return await store.library.drop(await item_id(store))


# In this order: the method, a call of it, and the action and the subject of the entry; None if it leaves none.
CHANGES: list[tuple[str, Callable[[AStore], Awaitable[Any]], tuple[str, str] | None]] = [
    ("People.put_user", lambda s: s.people.put_user("Ann@x.org", "user"), ("user_created", "user:ann@x.org")),
    (
        "People.put_user",
        lambda s: s.people.put_user("ann@x.org", "user", "the-hash"),
        ("user_changed", "user:ann@x.org"),
    ),
    ("People.change_user", lambda s: s.people.change_user(1, active=False), ("user_changed", "user:ann@x.org")),
    ("People.change_user", lambda s: s.people.change_user(9, active=False), None),
    ("People.change_user", lambda s: s.people.change_user(1, active=True), ("user_changed", "user:ann@x.org")),
    ("People.replace_password_hash", lambda s: s.people.replace_password_hash(1, "the-hash", "the-hash2"), None),
    ("People.add_token", lambda s: add_token(s, "api", "the-digest"), ("token_created", "token:1")),
    ("People.add_token", lambda s: add_token(s, "signin", "the-digest2"), ("sign_in_link_created", "sign_in_link:2")),
    ("People.add_token", lambda s: add_token(s, "session", "the-digest3"), None),
    ("People.revoke_token", lambda s: s.people.revoke_token("api", 1, None), ("token_revoked", "token:1")),
    ("People.revoke_token", lambda s: s.people.revoke_token("api", 1, None), None),
    ("People.revoke_token", lambda s: s.people.revoke_token("session", 3, 1), ("session_revoked", "session:3")),
    ("People.end_token", lambda s: s.people.end_token("the-digest2"), None),
    ("People.end_sessions", lambda s: s.people.end_sessions(1), None),
    ("People.add_token", lambda s: add_token(s, "session", "the-digest4"), None),
    ("People.end_sessions", lambda s: s.people.end_sessions(1), ("sessions_ended", "user:ann@x.org")),
    ("People.bind_account", lambda s: s.people.bind_account(1, ISSUER, "ann-1"), ("account_bound", "user:ann@x.org")),
    ("People.sign_in", lambda s: s.people.sign_in(account("ann-1"), PROVIDER), None),
    (
        "People.sign_in",
        lambda s: s.people.sign_in(account("bob-1"), PROVIDER),
        ("user_created", "user:bob-1@x.org"),
    ),
    (
        "People.sign_in",
        lambda s: s.people.sign_in(account("bob-1", "reviewer"), PROVIDER),
        ("user_changed", "user:bob-1@x.org"),
    ),
    ("People.unbind_accounts", lambda s: s.people.unbind_accounts(1), ("accounts_unbound", "user:ann@x.org")),
    ("People.unbind_accounts", lambda s: s.people.unbind_accounts(1), None),
    ("People.mark_used", lambda s: s.people.mark_used({1: 5}), None),
    (
        "Catalog.put_model",
        lambda s: s.catalog.put_model(Model(name="m", kind="echo"), sealed=b"the-seal"),
        ("model_created", "model:m"),
    ),
    (
        "Catalog.put_model",
        lambda s: s.catalog.put_model(Model(name="m", kind="echo", replicas=2), sealed=b"the-seal2"),
        ("model_changed", "model:m"),
    ),
    ("Catalog.drop_model", lambda s: s.catalog.drop_model("m"), ("model_removed", "model:m")),
    ("Catalog.drop_model", lambda s: s.catalog.drop_model("m"), None),
    ("Catalog.add_key", lambda s: s.catalog.add_key(1, "k", b"the-seal"), ("upstream_key_created", "upstream_key:")),
    ("Catalog.drop_key", drop_only_key, ("upstream_key_removed", "upstream_key:")),
    ("Catalog.drop_key", lambda s: s.catalog.drop_key(99), None),
    ("UsageRecords.put_price", lambda s: s.usage.put_price(PRICE), ("price_created", "price:m")),
    ("UsageRecords.put_price", lambda s: s.usage.put_price(PRICE), ("price_changed", "price:m")),
    ("UsageRecords.drop_price", lambda s: s.usage.drop_price("m", 1), ("price_removed", "price:m")),
    ("UsageRecords.drop_price", lambda s: s.usage.drop_price("m", 1), None),
    ("Limits.put_limit", lambda s: s.limits.put_limit(Limit(scope="all", parallel=1)), ("limit_created", "limit:all")),
    ("Limits.put_limit", lambda s: s.limits.put_limit(Limit(scope="all", parallel=2)), ("limit_changed", "limit:all")),
    ("Limits.drop_limit", lambda s: s.limits.drop_limit("all"), ("limit_removed", "limit:all")),
    ("Limits.drop_limit", lambda s: s.limits.drop_limit("all"), None),
    ("Streams.put", lambda s: s.streams.put(STREAM), ("stream_created", "stream:s")),
    ("Streams.put", lambda s: s.streams.put(STREAM), ("stream_changed", "stream:s")),
    ("Streams.drop", lambda s: s.streams.drop("s"), ("stream_removed", "stream:s")),
    ("Streams.drop", lambda s: s.streams.drop("s"), None),
    ("Library.put", lambda s: s.library.put(PROMPT), ("prompt_created", "prompt:greet")),
    ("Library.put", put_version, ("prompt_changed", "prompt:greet")),
    ("Library.label", lambda s: label_it(s, "old", 1), ("prompt_label_changed", "prompt:greet")),
    ("Library.label", lambda s: label_it(s, "old", None), ("prompt_label_changed", "prompt:greet")),
    ("Library.label", lambda s: label_it(s, "old", None), None),
    ("Library.share", share_it, ("prompt_sharing_changed", "prompt:greet")),
    ("Library.drop", drop_it, ("prompt_removed", "prompt:greet")),
    ("Library.drop", lambda s: s.library.drop(99), None),
    ("Library.sync", lambda s: s.library.sync([FUNCTION]), ("functions_changed", "functions")),
    ("Library.sync", lambda s: s.library.sync([FUNCTION]), None),
    ("Library.sync", lambda s: s.library.sync([]), ("functions_changed", "functions")),
    (
        "Secrets.add_key_fingerprint",
        lambda s: s.secrets.add_key_fingerprint("one"),
        ("encryption_key_changed", "encryption_key"),
    ),
    ("Secrets.add_key_fingerprint", lambda s: s.secrets.add_key_fingerprint("one"), None),
    (
        "Secrets.add_key_fingerprint",
        lambda s: s.secrets.add_key_fingerprint("two", drops_others=True),
        ("encryption_key_changed", "encryption_key"),
    ),
    ("Store.changed", lambda s: s.changed("cache", CLEARED), ("cache_cleared", "cache")),
    ("Store.changed", lambda s: s.changed("cache"), None),
]
CLEARED = AuditChange(action="cache_cleared", subject="cache", after={"model": "m", "deleted": 2})
INTERFACES = (People, SignIns, Catalog, UsageRecords, Limits, Streams, Library, Secrets, ModelLogs)
# Methods that change no configuration: they read, count, or note what happened.
OTHERS = {
    "People.has_other_reviewer",
    "People.user_of_account",
    *(
        "People.user",
        "People.users",
        "People.user_by_id",
        "People.user_with_token",
        "People.token",
        "People.tokens",
        "SignIns.begin",
    ),
    *("SignIns.succeed", "Catalog.models", "Catalog.key", "Catalog.known_key", "Catalog.keys", "UsageRecords.prices"),
    *(
        "UsageRecords.record",
        "UsageRecords.report",
        "UsageRecords.latencies",
        "Limits.all",
        "Limits.reserve",
        "Limits.settle",
        "Limits.renew",
    ),
    *("Limits.counters", "Limits.refusals"),
    *("Streams.all", "Streams.acquire_lead", "Streams.release_lead", "Library.get", "Library.list"),
    *("Library.versions", "Library.functions", "Secrets.page", "Secrets.replace", "Secrets.key_fingerprints"),
    *("ModelLogs.add", "ModelLogs.read", "ModelLogs.clean"),
}


async def entries(store: AStore, **criteria: Any) -> list[AuditEntry]:
    return await store.audit.page(AuditFilter(**({"limit": 1000} | criteria)))


def test_every_method_of_the_store_is_known_to_change_the_configuration_or_not() -> None:
    methods = {
        f"{interface.__name__}.{name}"
        for interface in INTERFACES
        for name, _ in inspect.getmembers(interface, inspect.iscoroutinefunction)
    }
    assert {name for name, _, _ in CHANGES} | OTHERS == methods | {"Store.changed"}
    assert {name for name, _, change in CHANGES if change is not None} & OTHERS == set()


async def test_each_change_leaves_exactly_one_entry_of_its_actor(store: AStore) -> None:
    act_as(ANN)
    count = 0
    for name, change, expected in CHANGES:
        await change(store)
        new = (await entries(store))[: len(await entries(store)) - count]
        assert len(new) == (expected is not None), (name, expected, new)
        count += len(new)
        if expected is not None:
            assert (new[0].actor, new[0].client, new[0].action) == (ANN.name, ANN.client, expected[0])
            assert new[0].subject == expected[1] or (expected[1][-1] == ":" and new[0].subject.startswith(expected[1]))
    history = await entries(store)
    assert [entry.id for entry in history] == sorted({entry.id for entry in history}, reverse=True)
    assert not [secret for secret in SECRETS if secret in repr(history)]


async def test_an_entry_has_the_states_before_and_after_and_names_changed_secrets(store: AStore) -> None:
    await store.people.put_user("ann@x.org", "user")
    await store.people.put_user("ann@x.org", "admin", "the-hash")
    await store.streams.put(STREAM)
    [stream, user, _] = await entries(store)

    assert user.before == {"id": 1, "email": "ann@x.org", "role": "user", "active": True}
    assert user.after == {**user.before, "role": "admin", "changed_secrets": ["password"]}
    assert (stream.before, user.actor, user.client) == (None, "system", None)
    assert stream.after is not None
    assert (stream.after["host"], stream.after["changed_secrets"]) == ("h:1", ["url"])


async def test_a_change_that_fails_leaves_no_entry(store: AStore) -> None:
    await store.people.put_user("ann@x.org", "admin")
    await store.catalog.put_model(Model(name="m", kind="echo"))
    before = await entries(store)

    with pytest.raises(Conflict):
        await store.people.change_user(1, role="user")
    with pytest.raises(Conflict):
        await store.catalog.put_model(Model(name="m", kind="http"), is_new=True)

    assert await entries(store) == before


async def test_concurrent_changes_have_an_entry_each_of_their_own_actor(store: AStore, other: AStore) -> None:
    async def change(number: int) -> None:
        act_as(Actor(name=f"user:{number}"))
        await [store, other][number % 2].catalog.put_model(Model(name="m", kind="echo", replicas=number + 1))

    await together(change(number) for number in range(10))

    history = await entries(store)
    assert {entry.actor: (entry.after or {})["replicas"] for entry in history} == {
        f"user:{number}": number + 1 for number in range(10)
    }
    assert [entry.before for entry in history[:-1]] == [entry.after for entry in history[1:]]


async def test_pages_are_filtered_and_begin_with_the_newest_entry(store: AStore) -> None:
    for number in range(3):
        act_as(Actor(name=f"user:{number}"))
        await store.catalog.put_model(Model(name=f"m{number}", kind="echo"))
    await store.catalog.drop_model("m0")
    history = await entries(store)

    assert [entry.subject for entry in history] == ["model:m0", "model:m2", "model:m1", "model:m0"]
    assert await entries(store, limit=2) == history[:2]
    assert await entries(store, after_id=history[1].id) == history[2:]
    assert await entries(store, actor="user:2") == history[:2]
    assert await entries(store, subject="model:m0") == [history[0], history[3]]
    assert await entries(store, action="model_removed", actor="user:2") == [history[0]]
    assert await entries(store, since=history[1].at) == [one for one in history if one.at >= history[1].at]
    assert await entries(store, until=history[1].at) == [one for one in history if one.at < history[1].at]


async def test_settings_are_recorded_if_they_differ_from_the_last_start(store: AStore, other: AStore) -> None:
    act_as(ANN)
    starts = [each.audit.record_settings("settings:serve", {"port": 1}) for each in (store, other) * 4]
    assert sorted(await together(starts)) == [False] * 7 + [True]
    assert await store.audit.record_settings("settings:work", {"port": 1})
    assert await store.audit.record_settings("settings:serve", {"port": 2})
    assert await store.audit.record_settings("settings:serve", {"port": 1})

    [newest, *_, first] = await entries(store, subject="settings:serve")
    assert (first.before, newest.before, newest.after) == (None, {"port": 2}, {"port": 1})
    assert {entry.actor for entry in await entries(store)} == {"system"}


@pytest.mark.parametrize("statement", [sa.update(audit).values(actor="user:bob"), sa.delete(audit)])
async def test_the_database_refuses_to_change_or_delete_an_entry(store: AStore, statement: sa.Update) -> None:
    await store.catalog.put_model(Model(name="m", kind="echo"))
    before = await entries(store)

    if isinstance(store, SqlStore):
        with pytest.raises(DBAPIError, match="append-only"):
            await store._database.write(lambda tx: tx.conn.execute(statement).rowcount)
    assert await entries(store) == before
