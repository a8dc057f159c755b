"""Contract tests of stores: models, upstream keys, sealed secrets and the logs of models."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.test_streams import a_stream
from signoff.catalog import SealedSecret
from signoff.core import access
from signoff.core.access import Caller
from signoff.core.batch import Batch
from signoff.core.delivery import DeliveryTarget
from signoff.core.log import LogLine
from signoff.core.model import Model
from signoff.core.model_digest import model_digest
from signoff.core.reviews.queues import ReviewQueue
from signoff.errors import Conflict, NameTaken, VersionConflict
from signoff.stores import secrets as stored_secrets
from support.stores import ANSWER, AStore, a_step, inserted, leased, together

pytestmark = pytest.mark.anyio


def a_model(name: str = "m", **more: object) -> Model:
    return Model(**({"name": name, "kind": "openai", "url": "http://a"} | more))  # type: ignore[arg-type]


async def key_of(store: AStore, name: str = "m") -> int | None:
    return next(model.key_id for model in await store.catalog.models() if model.name == name)


async def secrets(store: AStore) -> list[bytes]:
    """Return the sealed forms of all upstream keys."""
    return [sealed.sealed for sealed in await store.secrets.page("key", None, 100)]


# Models


async def test_of_concurrent_registrations_of_a_new_name_one_succeeds(store: AStore, other: AStore) -> None:
    async def register(turn: int) -> bool:
        try:
            await [store, other][turn % 2].catalog.put_model(a_model(url=f"http://{turn}"), is_new=True)
        except NameTaken:
            return False
        return True

    outcomes = await together(register(turn) for turn in range(20))
    [model] = await store.catalog.models()
    assert outcomes.count(True) == 1
    assert model.url == f"http://{outcomes.index(True)}"


async def test_registering_a_taken_name_as_new_changes_neither_model_nor_key(store: AStore) -> None:
    await store.catalog.put_model(a_model(), sealed=b"s", is_new=True)
    before = await store.catalog.models()
    with pytest.raises(NameTaken):
        await store.catalog.put_model(a_model(url="http://b"), sealed=b"other", is_new=True)
    assert await store.catalog.models() == before
    assert await secrets(store) == [b"s"]


async def test_of_concurrent_changes_from_the_same_state_of_a_model_one_succeeds(store: AStore, other: AStore) -> None:
    await store.catalog.put_model(a_model(), sealed=b"s")
    digest = model_digest(a_model())

    async def change(turn: int) -> bool:
        try:
            await [store, other][turn % 2].catalog.put_model(a_model(url=f"http://{turn}"), expected_digest=digest)
        except VersionConflict:
            return False
        return True

    assert (await together(change(turn) for turn in range(6))).count(True) == 1
    with pytest.raises(VersionConflict):
        await store.catalog.put_model(a_model("none"), expected_digest=digest)


async def test_at_most_one_model_is_the_default(store: AStore, other: AStore) -> None:
    for name in "abc":
        await store.catalog.put_model(a_model(name, default=True), sealed=name.encode())
    assert [model.name for model in await store.catalog.models() if model.default] == ["c"]
    assert [await store.catalog.key(await key_of(store, name) or 0) for name in "abc"] == [b"a", b"b", b"c"]
    await together(
        [store, other][turn % 2].catalog.put_model(a_model("abc"[turn % 3], default=True)) for turn in range(12)
    )
    assert len([model for model in await store.catalog.models() if model.default]) == 1


# Keys of models


async def test_a_models_key_stays_until_it_is_replaced_or_dropped(store: AStore) -> None:
    await store.catalog.put_model(a_model(), sealed=b"one")
    first = await key_of(store)
    assert first is not None
    # when the model is registered again without a key, then it keeps its key, whatever its `key_id` says
    await store.catalog.put_model(a_model(url="http://b", key_id=first + 100))
    assert await key_of(store) == first
    # when the key is replaced, then the old one is gone
    await store.catalog.put_model(a_model(), sealed=b"two")
    assert await store.catalog.key(await key_of(store) or 0) == b"two"
    assert await secrets(store) == [b"two"]
    # when the key is dropped
    await store.catalog.put_model(a_model(), drops_key=True)
    assert await key_of(store) is None
    assert await secrets(store) == []


async def test_dropping_a_model_drops_its_key(store: AStore) -> None:
    await store.catalog.put_model(a_model(), sealed=b"one")
    assert await store.catalog.drop_model("m") is True
    assert await secrets(store) == []


# Keys of users


async def test_a_user_sees_their_own_and_shared_keys_but_not_those_of_models(store: AStore) -> None:
    ann, bob = [await store.people.put_user(f"{name}@example.com", "user") for name in ("ann", "bob")]
    await store.catalog.put_model(a_model(), sealed=b"model's")
    own = await store.catalog.add_key(ann.id, "own", b"\x00sealed")
    shared = await store.catalog.add_key(bob.id, "shared", b"\xff", is_shared=True)
    private = await store.catalog.add_key(bob.id, "private", b"\xfe")

    assert [await store.catalog.key(key) for key in (own, shared, private)] == [b"\x00sealed", b"\xff", b"\xfe"]
    assert [key.id for key in await store.catalog.keys(ann.id)] == [own, shared]
    assert [key.id for key in await store.catalog.keys(bob.id)] == [shared, private]
    assert [key.id for key in await store.catalog.keys(None)] == [own, shared, private]
    assert [key.id for key in await store.catalog.keys(None, limit=1)] == [own]
    assert [key.id for key in await store.catalog.keys(None, after_id=own, limit=1)] == [shared]
    key = await store.catalog.known_key(shared)
    assert key is not None
    assert (key.user_id, key.name, key.is_shared) == (bob.id, "shared", True)


async def test_the_id_of_a_dropped_key_is_not_reused(store: AStore) -> None:
    ann = await store.people.put_user("ann@example.com", "user")
    await store.catalog.add_key(ann.id, "first", b"1")
    last = await store.catalog.add_key(ann.id, "last", b"2")
    before = await store.versions()
    assert await store.catalog.drop_key(last) is True
    assert await store.catalog.drop_key(last) is False
    assert (await store.versions())["models"] > before["models"]
    assert await store.catalog.key(last) is None
    assert await store.catalog.known_key(last) is None
    assert await store.catalog.add_key(ann.id, "next", b"3") > last


async def test_a_token_and_a_job_store_their_key_id(store: AStore) -> None:
    ann = await store.people.put_user("ann@example.com", "user")
    token = await store.people.add_token(ann.id, "digest", kind="api", name="", role="user", key_id=7)
    row = await store.people.token("digest")
    assert row is not None
    assert token.key_id == row[0].key_id == 7
    job = await inserted(store, key_id=7)
    assert (await store.jobs.get(job.id)) == job
    [claimed] = await store.jobs.claim(actor="w", lease="mine", limit=1, lease_seconds=60)
    assert (job.key_id, claimed.key_id) == (7, 7)


async def test_a_refused_registration_changes_no_version(store: AStore) -> None:
    await store.catalog.put_model(a_model())
    before = await store.versions()
    with pytest.raises(NameTaken):
        await store.catalog.put_model(a_model(url="http://b"), sealed=b"k", is_new=True)
    assert await store.versions() == before


# Sealed secrets


async def test_jobs_with_a_secret_are_found_among_many_in_bounded_scans(
    store: AStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_secrets, "MAX_SCANNED_JOBS", 3)
    hook = DeliveryTarget(address="http://a", host="a", sealed=b"job")
    jobs = [await inserted(store, deliver=(hook,) if index in {6, 13, 14} else ()) for index in range(25)]

    job_ids, after = list[str](), None
    while page := await store.secrets.page("job", after, 2):
        job_ids, after = [*job_ids, *(secret.id for secret in page)], page[-1].id

    assert job_ids == [jobs[index].id for index in (6, 13, 14)]


async def test_all_sealed_secrets_are_listed_in_pages_and_replaced_in_place(store: AStore) -> None:
    ann = await store.people.put_user("ann@example.com", "user")
    for number in range(12):
        await store.catalog.add_key(ann.id, "", b"k%d" % number)
    hook, mirror = (
        DeliveryTarget(address="http://a", host="a", sealed=b"\x00job"),
        DeliveryTarget(kind="redis", address="a", host="a"),
    )
    with_hook = await inserted(store, deliver=(mirror, hook))
    mirrored = await inserted(store, deliver=(mirror,))
    await inserted(store)

    sealed_keys, after = list[SealedSecret](), None
    while page := await store.secrets.page("key", after, 5):
        sealed_keys, after = [*sealed_keys, *page], page[-1].id
    assert [secret.sealed for secret in sealed_keys] == [b"k%d" % number for number in range(12)]
    sealed_jobs = await store.secrets.page("job", None, 5)
    assert [(secret.id, secret.sealed) for secret in sealed_jobs] == [(with_hook.id, b"\x00job"), (mirrored.id, b"")]
    assert await store.secrets.page("job", mirrored.id, 5) == []
    for name in ("one", "two"):
        await store.streams.put(a_stream(name, sealed=name.encode()))
    first, second = await store.secrets.page("stream", None, 5)
    assert (first.sealed, second.sealed) == (b"one", b"two")
    assert await store.secrets.page("stream", "one", 5) == [second]
    # when a secret is replaced, then it is replaced once
    for secret in (sealed_keys[3], sealed_jobs[0], second):
        assert await store.secrets.replace(secret, b"new") is True
        assert await store.secrets.replace(secret, b"newer") is False
    assert (await secrets(store))[3] == b"new"
    changed = await store.jobs.get(with_hook.id)
    assert changed is not None
    assert changed.deliver == (mirror, DeliveryTarget(address="a", host="a", sealed=b"new"))
    assert [stream.sealed for stream in await store.streams.all()] == [b"one", b"new"]
    assert await store.secrets.replace(SealedSecret(kind="job", id="nobody", sealed=b"x"), b"y") is False


async def test_webhooks_of_batches_and_review_queues_are_sealed_secrets(store: AStore) -> None:
    plain: dict[str, Any] = {"user_id": 7, "api": "openai", "endpoint": "/v1/responses", "input_file_id": "file-x"}
    caller = Caller(user_id=7, token_id=1, role="user", email="ann@example.com")
    for number, webhook in enumerate((b"first", None, b"second")):
        batch = Batch(id=f"batch_{number}", caller=caller, webhook=webhook, webhook_host="a", **plain)
        await store.batches.insert(batch, window_seconds=60)
    for name, sealed in (("a", b"of a"), ("b", None), ("c", b"of c")):
        await store.review_queues.put(ReviewQueue(name=name, sealed=sealed))

    of_batches = await store.secrets.page("batch", None, 5)
    of_queues = await store.secrets.page("review_queue", None, 5)
    assert [(each.id, each.sealed) for each in of_batches] == [("batch_0", b"first"), ("batch_2", b"second")]
    assert [(each.id, each.sealed) for each in of_queues] == [("a", b"of a"), ("b", b""), ("c", b"of c")]
    assert await store.secrets.page("batch", "batch_0", 1) == of_batches[1:]
    assert await store.secrets.page("review_queue", "a", 1) == of_queues[1:2]
    # when a secret is replaced, then it is replaced once
    for secret in (of_batches[1], of_queues[2]):
        assert await store.secrets.replace(secret, b"new") is True
        assert await store.secrets.replace(secret, b"newer") is False
    assert [each.sealed for each in await store.secrets.page("batch", None, 5)] == [b"first", b"new"]
    assert [queue.sealed for queue in await store.review_queues.all()] == [b"of a", None, b"new"]


async def test_the_url_of_a_webhook_in_clear_goes_from_the_job_and_its_deliveries(store: AStore) -> None:
    url = "https://a.example/t0ken"
    hook = DeliveryTarget(address=url, host="a.example", sealed=None)
    job = await leased(store, deliver=(hook,))
    await store.jobs.transition(job.id, a_step("succeed", changes={"response": ANSWER}))
    assert [delivery.address for delivery in await store.deliveries.of_job(job.id)] == [url]

    [secret] = await store.secrets.page("job", None, 5)
    assert (secret.sealed, secret.clear_url) == (b"", url)
    assert await store.secrets.replace(secret, b"new") is True
    assert await store.secrets.replace(secret, b"newer") is False

    changed = await store.jobs.get(job.id)
    assert changed is not None
    assert changed.deliver == (DeliveryTarget(address="a.example", host="a.example", sealed=b"new"),)
    assert [delivery.address for delivery in await store.deliveries.of_job(job.id)] == ["a.example"]
    assert [secret.clear_url for secret in await store.secrets.page("job", None, 5)] == [""]


# Logs of models


def line(number: int) -> LogLine:
    return LogLine(at=number, level="info", text=str(number))


async def test_the_log_of_a_model_keeps_its_newest_lines_from_all_writers(store: AStore, other: AStore) -> None:
    for number in range(10):
        writer = [store, other][number % 2]
        await writer.model_logs.add([("m", line(number)), ("other", line(100 + number))], max_lines=4)
    assert await other.model_logs.read("m", 100) == [line(number) for number in (6, 7, 8, 9)]
    assert await store.model_logs.read("m", 2) == [line(8), line(9)]
    assert await store.model_logs.read("unheard", 2) == []
    await other.model_logs.clean("m")
    assert await store.model_logs.read("m", 100) == []
    assert len(await store.model_logs.read("other", 100)) == 4
    await store.model_logs.add([], max_lines=4)


async def test_a_log_accepts_more_lines_at_once_than_it_keeps(store: AStore) -> None:
    await store.model_logs.add([("m", line(number)) for number in range(2500)], max_lines=2000)
    assert await store.model_logs.read("m", 5000) == [line(number) for number in range(500, 2500)]


async def test_fingerprints_of_keys_are_a_set_that_processes_share(store: AStore, other: AStore) -> None:
    assert await store.secrets.key_fingerprints() == set()
    for each in (store, other, store):
        await each.secrets.add_key_fingerprint("one")
    await other.secrets.add_key_fingerprint("two")
    assert await store.secrets.key_fingerprints() == {"one", "two"}
    await store.secrets.add_key_fingerprint("three", drops_others=True)
    assert await other.secrets.key_fingerprints() == {"three"}


async def test_a_user_may_have_so_many_keys(store: AStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_KEYS_OF_USER", 2)
    ann, bob = [await store.people.put_user(email, "user") for email in ("ann@x.org", "bob@x.org")]
    first = await store.catalog.add_key(ann.id, "first", b"1")
    await store.catalog.add_key(ann.id, "second", b"2")
    with pytest.raises(Conflict, match="at most 2 upstream keys"):
        await store.catalog.add_key(ann.id, "third", b"3")
    await store.catalog.add_key(bob.id, "first", b"1")
    await store.catalog.drop_key(first)
    await store.catalog.add_key(ann.id, "third", b"3")
