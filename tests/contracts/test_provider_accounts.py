"""Accounts at OpenID Connect providers and their users, in every store."""

from __future__ import annotations

import pytest

from signoff.core.audit import Actor, AuditFilter
from signoff.core.oidc import ProviderAccount, ProviderSettings
from signoff.errors import Conflict, SignInRefused
from signoff.infra.actor import act_as
from support.stores import AStore, together

pytestmark = pytest.mark.anyio

ISSUER = "https://sso.example.com"
SETTINGS = ProviderSettings(
    issuer=ISSUER, client_id="signoff", role_claim="groups", roles={"ops": "admin"}, link_users=True
)
ANN = ProviderAccount(issuer=ISSUER, subject="ann-1", email="ann@example.com", role="reviewer")


async def test_an_account_creates_its_user_once_and_is_bound_to_it(store: AStore) -> None:
    act_as(Actor(name="oidc", client="203.0.113.9"))
    before = (await store.versions())["people"]
    user = await store.people.sign_in(ANN, SETTINGS)
    after = (await store.versions())["people"]

    assert (user.email, user.role, user.password_hash, user.active) == ("ann@example.com", "reviewer", None, True)
    assert await store.people.sign_in(ANN, SETTINGS) == user
    assert await store.people.user_of_account(ISSUER, "ann-1") == user
    assert await store.people.user_of_account("https://other.example.com", "ann-1") is None
    assert after > before
    assert (await store.versions())["people"] == after  # a sign-in that changes nothing clears no copies
    [entry] = await store.audit.page(AuditFilter())
    assert (entry.action, entry.actor, entry.client) == ("user_created", "oidc", "203.0.113.9")
    assert entry.after is not None
    assert (entry.after["role"], entry.after["issuer"], entry.after["account"]) == ("reviewer", ISSUER, "ann-1")


async def test_first_sign_ins_of_one_account_at_once_make_one_user(store: AStore, other: AStore) -> None:
    users = await together([store, other][turn % 2].people.sign_in(ANN, SETTINGS) for turn in range(10))

    assert len({user.id for user in users}) == 1
    assert await store.people.users() == users[:1]


async def test_a_user_has_one_account_of_an_issuer_and_an_account_one_user(store: AStore) -> None:
    people = store.people
    ann, bob = await people.sign_in(ANN, SETTINGS), await people.put_user("bob@example.com", "user")

    for user_id, subject in ((ann.id, "ann-2"), (bob.id, "ann-1"), (ann.id, "ann-1")):
        with pytest.raises(Conflict):
            await people.bind_account(user_id, ISSUER, subject)
    with pytest.raises(SignInRefused):
        await people.sign_in(ProviderAccount(issuer=ISSUER, subject="x", email=ann.email, role="admin"), SETTINGS)
    await people.bind_account(ann.id, "https://other.example.com", "ann-1")
    await people.bind_account(bob.id, ISSUER, "bob-1")

    assert await people.user_of_account(ISSUER, "bob-1") == bob
    assert (await people.user(ann.email)) == ann


@pytest.mark.parametrize(("role", "is_alive"), [("admin", True), ("reviewer", True), ("user", False)])
async def test_a_smaller_role_of_the_claims_ends_sessions(role: str, is_alive: bool, store: AStore) -> None:
    await store.people.put_user("root@example.com", "admin")
    ann = await store.people.sign_in(ANN, SETTINGS)
    await store.people.add_token(ann.id, "session", kind="session", name="", role="reviewer", seconds=60)

    account = ProviderAccount(issuer=ISSUER, subject="ann-1", role=role)  # type: ignore[arg-type]
    changed = await store.people.sign_in(account, SETTINGS)

    assert changed.role == role
    assert (await store.people.token("session") is not None) == is_alive


async def test_a_refused_sign_in_changes_nothing(store: AStore) -> None:
    root = await store.people.put_user("root@example.com", "admin")
    linked = ProviderAccount(issuer=ISSUER, subject="root-1", email=root.email, role="user")
    with pytest.raises(Conflict, match="last active admin"):
        await store.people.sign_in(linked, SETTINGS)

    assert await store.people.users() == [root]
    assert await store.people.user_of_account(ISSUER, "root-1") is None


async def test_an_unbound_user_is_nobody_at_the_provider_and_loses_sessions(store: AStore) -> None:
    people = store.people
    ann = await people.sign_in(ANN, SETTINGS)
    await people.add_token(ann.id, "session", kind="session", name="", role="user", seconds=60)
    await people.add_token(ann.id, "api", kind="api", name="", role="user")

    assert await people.unbind_accounts(ann.id) == 1
    assert await people.unbind_accounts(ann.id) == 0
    assert await people.user_of_account(ISSUER, "ann-1") is None
    assert [await people.token(name) is not None for name in ("session", "api")] == [False, True]
    [entry] = await store.audit.page(AuditFilter(action="accounts_unbound"))
    assert entry.before == {"accounts": [{"issuer": ISSUER, "account": "ann-1"}]}


async def test_an_erased_user_has_no_account(store: AStore) -> None:
    await store.people.put_user("root@example.com", "admin")
    ann = await store.people.sign_in(ANN, SETTINGS)
    await store.people.change_user(ann.id, active=False)
    await store.erasures.begin(ann.id)

    assert await store.people.user_of_account(ISSUER, "ann-1") is None
