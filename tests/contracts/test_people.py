"""Users, tokens, and failed sign-ins, in every store."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa

from signoff.core import access
from signoff.core import sign_in as core_sign_in
from signoff.core.access import TokenKind
from signoff.core.sign_in import sign_in_limits
from signoff.errors import Conflict
from signoff.stores.people_schema import sign_in_failures
from support.stores import AStore, execute, together

pytestmark = pytest.mark.anyio

KINDS: tuple[TokenKind, ...] = ("api", "session", "signin")


@pytest.fixture(autouse=True)
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the waits longer than any test, however slow the machine is."""
    monkeypatch.setattr(core_sign_in, "FIRST_WAIT_SECONDS", 600.0)


async def test_a_change_of_a_user_keeps_them_active_or_inactive(store: AStore) -> None:
    user = await store.people.put_user("ann@example.com", "user", "hash")

    disabled = await store.people.change_user(user.id, active=False)
    changed = await store.people.put_user("ann@example.com", "reviewer")
    enabled = await store.people.change_user(user.id, active=True)

    assert disabled == msgspec.structs.replace(user, active=False)
    assert changed == msgspec.structs.replace(user, active=False, role="reviewer")
    assert enabled == msgspec.structs.replace(user, role="reviewer")
    assert await store.people.change_user(user.id + 1, active=False) is None


@pytest.mark.parametrize("change", ["password", "password by id", "role", "deactivation"])
async def test_losing_rights_ends_sessions_and_links_but_no_api_token(change: str, store: AStore) -> None:
    people = store.people
    await people.put_user("root@example.com", "admin")
    ann, bob = [await people.put_user(f"{name}@example.com", "reviewer", "hash") for name in ("ann", "bob")]
    for user in (ann, bob):
        for kind in KINDS:
            digest, hash_ = f"{kind} {user.id}", user.password_hash
            await people.add_token(
                user.id, digest, kind=kind, name="", role="reviewer", seconds=60, password_hash=hash_
            )

    match change:
        case "password":
            await people.put_user("ann@example.com", "reviewer", "another hash")
        case "password by id":
            changed = await people.change_user(ann.id, password_hash="another hash")
            assert changed == msgspec.structs.replace(ann, password_hash="another hash")
        case "role":
            await people.put_user("ann@example.com", "user")
        case _:
            await people.change_user(ann.id, active=False)
            await people.change_user(ann.id, active=True)

    assert [await people.token(f"{kind} {ann.id}") is not None for kind in KINDS] == [True, False, False]
    assert [await people.token(f"{kind} {bob.id}") is not None for kind in KINDS] == [True, True, True]


async def test_a_new_user_does_not_change_the_one_with_the_address(store: AStore, other: AStore) -> None:
    ann = await store.people.put_user("ann@example.com", "user", "hash", must_be_new=True)
    with pytest.raises(Conflict, match=r"ANN@example\.com"):
        await store.people.put_user("ANN@example.com", "admin", "another hash", must_be_new=True)
    assert await store.people.user("ann@example.com") == ann

    async def create(each: AStore) -> bool:
        try:
            await each.people.put_user("bob@example.com", "user", must_be_new=True)
        except Conflict:
            return False
        return True

    assert sorted(await together([create(store), create(other)])) == [False, True]


async def test_sessions_survive_the_same_password_more_rights_and_another_hash(store: AStore) -> None:
    people = store.people
    ann = await people.put_user("ann@example.com", "user", "hash")
    await people.add_token(ann.id, "session", kind="session", name="", role="user", seconds=60, password_hash="hash")

    await people.put_user("ann@example.com", "admin", "hash")
    await people.replace_password_hash(ann.id, "hash", "new hash")
    await people.replace_password_hash(ann.id, "hash", "too late")

    row = await people.token("session")
    assert row is not None
    assert (row[1].role, row[1].password_hash) == ("admin", "new hash")


async def test_the_last_active_admin_stays_one(store: AStore, other: AStore) -> None:
    people = store.people
    admins = [await people.put_user(f"{name}@example.com", "admin") for name in ("ann", "bob")]

    async def leave(turn: int) -> bool:
        try:
            await [store, other][turn].people.change_user(admins[turn].id, active=False)
        except Conflict:
            return False
        return True

    assert sorted(await together(leave(turn) for turn in range(2))) == [False, True]
    [last] = [user for user in await people.users() if user.active]
    with pytest.raises(Conflict, match=last.email):
        await people.put_user(last.email, "reviewer")
    with pytest.raises(Conflict, match=last.email):
        await people.change_user(last.id, role="user")
    assert await people.user(last.email) == last


async def test_one_sign_in_link_of_a_user_is_alive_at_a_time(store: AStore) -> None:
    users = [await store.people.put_user(f"{name}@example.com", "user") for name in ("ann", "bob")]
    for user in users:
        for number in range(2):
            digest = f"{number} {user.id}"
            await store.people.add_token(user.id, digest, kind="signin", name="", role="user", seconds=60)

    for user in users:
        assert [await store.people.token(f"{number} {user.id}") is not None for number in range(2)] == [False, True]


async def test_active_tokens_are_listed_in_pages(store: AStore) -> None:
    people = store.people
    ann, bob = [await people.put_user(f"{name}@example.com", "user") for name in ("ann", "bob")]
    listed = []
    for number, user in enumerate((ann, bob, ann, ann)):
        token = await people.add_token(user.id, f"{number}", kind="api", name=f"{number}", role="user")
        listed.append((token, user))
    await people.add_token(ann.id, "over", kind="session", name="", role="user", seconds=-1)
    session = await people.add_token(ann.id, "session", kind="session", name="", role="user", seconds=60)
    await people.end_token("2")
    del listed[2]

    assert await people.tokens("api", None) == listed
    assert await people.tokens("api", None, limit=2) == listed[:2]
    assert await people.tokens("api", None, after_id=listed[1][0].id) == listed[2:]
    assert await people.tokens("api", ann.id) == [listed[0], listed[2]]
    assert await people.tokens("session", None) == [(session, ann)]
    assert await people.users(after_id=ann.id) == [bob]
    assert await people.users(limit=1) == [ann]


async def test_a_user_has_a_limited_number_of_tokens_that_are_alive(
    store: AStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MAX_TOKENS_OF_USER", 2)
    people = store.people
    ann, bob = [await people.put_user(f"{name}@example.com", "user") for name in ("ann", "bob")]

    async def add(digest: str, user_id: int = ann.id, kind: TokenKind = "api", seconds: float | None = None) -> int:
        return (await people.add_token(user_id, digest, kind=kind, name="", role="user", seconds=seconds)).id

    await add("over", seconds=-1)
    await add("session", kind="session", seconds=60)
    first = await add("first")
    await add("second", seconds=60)
    with pytest.raises(Conflict, match="at most 2 API tokens"):
        await add("third")
    await add("link", kind="signin", seconds=60)
    await add("of bob", bob.id)
    await people.revoke_token("api", first, ann.id)
    await add("third")


async def test_a_token_is_revoked_by_its_id_once(store: AStore) -> None:
    people = store.people
    ann, bob = [await people.put_user(f"{name}@example.com", "user") for name in ("ann", "bob")]
    token = await people.add_token(ann.id, "digest", kind="api", name="", role="user")

    assert await people.revoke_token("api", token.id, bob.id) is False
    assert await people.revoke_token("session", token.id, ann.id) is False
    assert await people.token("digest") is not None
    assert await people.revoke_token("api", token.id, None) is True
    assert await people.revoke_token("api", token.id, ann.id) is False
    assert await people.token("digest") is None


async def test_ending_the_sessions_of_a_user_leaves_their_api_tokens(store: AStore) -> None:
    people = store.people
    ann, bob = [await people.put_user(f"{name}@example.com", "user") for name in ("ann", "bob")]
    for user in (ann, bob):
        for kind in KINDS:
            await people.add_token(user.id, f"{kind} {user.id}", kind=kind, name="", role="user", seconds=60)

    assert await people.end_sessions(ann.id) == 2
    assert await people.end_sessions(ann.id) == 0
    assert [await people.token(f"{kind} {ann.id}") is not None for kind in KINDS] == [True, False, False]
    assert [await people.token(f"{kind} {bob.id}") is not None for kind in KINDS] == [True, True, True]


async def test_the_latest_use_of_a_token_is_recorded_without_a_change_of_people(store: AStore) -> None:
    people = store.people
    ann = await people.put_user("ann@example.com", "user")
    one, two = [await people.add_token(ann.id, name, kind="api", name="", role="user") for name in ("one", "two")]
    before = await store.versions()

    await people.mark_used({two.id: 7, one.id: 5})
    await people.mark_used({two.id: 6, one.id: 8, 999: 1})

    assert [token.last_used_at for token, _ in await people.tokens("api", None)] == [8, 7]
    assert await store.versions() == before


async def test_concurrent_attempts_never_exceed_the_limit_together(store: AStore, other: AStore) -> None:
    email, client = sign_in_limits("ann@example.com", "203.0.113.9")

    denials = await together([store, other][turn % 2].sign_ins.begin([email, client]) for turn in range(20))

    assert denials.count(None) == email.burst
    assert {denial.by for denial in denials if denial} == {"email"}
    # A transaction that began earlier and waited for a lock sees an end that was computed later.
    assert [denial.seconds for denial in denials if denial and not 0 < denial.seconds <= 660] == []


async def test_a_denied_attempt_counts_under_no_limit(store: AStore) -> None:
    email, client = sign_in_limits("ann@example.com", "203.0.113.9")
    for _ in range(2 * client.burst):
        await store.sign_ins.begin([email, client])

    others = [sign_in_limits(f"user{number}@example.com", "203.0.113.9") for number in range(client.burst)]

    assert [await store.sign_ins.begin(pair) for pair in others].count(None) == client.burst - email.burst


async def test_a_client_is_limited_over_all_addresses(store: AStore) -> None:
    limits = [sign_in_limits(f"user{number}@example.com", "203.0.113.9") for number in range(40)]

    denials = [await store.sign_ins.begin(pair) for pair in limits]

    assert denials.count(None) == limits[0][1].burst
    assert {denial.by for denial in denials if denial} == {"client"}
    assert await store.sign_ins.begin(sign_in_limits("user39@example.com", "203.0.113.10")) is None


async def test_success_forgets_the_failures_of_the_address_and_one_of_the_client(store: AStore) -> None:
    email, client = sign_in_limits("ann@example.com", "203.0.113.9")
    for _ in range(email.burst):
        assert await store.sign_ins.begin([email, client]) is None
    await store.sign_ins.succeed(email, client)

    allowed = [await store.sign_ins.begin([email, client]) for _ in range(email.burst)]
    others = [await store.sign_ins.begin([client]) for _ in range(client.burst)]

    assert allowed == [None] * email.burst
    assert others.count(None) == client.burst - (2 * email.burst - 1)


async def test_failures_are_forgotten_after_a_while(store: AStore) -> None:
    email, client = sign_in_limits("ann@example.com", "203.0.113.9")
    for _ in range(email.burst + 1):
        denial = await store.sign_ins.begin([email, client])
    assert denial is not None

    await execute(store, sa.update(sign_in_failures).values(blocked_until=0, expires_at=0))

    assert [await store.sign_ins.begin([email, client]) for _ in range(email.burst)] == [None] * email.burst
