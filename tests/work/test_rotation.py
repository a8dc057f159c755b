"""Rotation of the encryption key: no secret is lost by concurrent writes or an interrupted rotation."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from msgspec import inspect
from pydantic import SecretStr

from fakes.upstream import fake_upstream
from signoff.catalog import SealedSecret
from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.batch import Batch
from signoff.core.delivery import WebhookTarget
from signoff.core.reviews.queues import ReviewQueue
from signoff.core.signing import Secret
from signoff.errors import Conflict, WrongKey
from signoff.infra.vault import (
    Unreadable,
    Vault,
    add_new_key,
    drop_old_keys,
    keys_locked,
    load_keys,
    load_or_create_keys,
    put_new_key_first,
)
from signoff.server.bootstrap import open_services
from signoff.settings import Settings
from signoff.stores.json_column import JsonColumn
from signoff.stores.metadata import metadata
from signoff.stores.schema import encryption_keys
from signoff.stores.secrets import SEALED_COLUMNS
from signoff.work.admin.people import create_user
from signoff.work.admin.rotation import KINDS, RotationResult, count_old_secrets, rotate_secrets
from signoff.work.services import Services
from signoff.work.submit import submit
from support.live_server import chat, live
from support.preloaded import PreloadedProcess
from support.processes import SIGNOFF, clean_environment, run_command, signoff, until
from support.stores import execute

pytestmark = pytest.mark.anyio
SECRETS = 400
# Binary columns without secrets of the vault.
NOT_SEALED = {
    *("jobs.body", "jobs.response", "jobs.metadata", "calls.data", "function_calls.arguments", "function_calls.output"),
    *("planted_items.body", "planted_items.response", "review_notices.body"),
    *("receipts.line", "receipt_keys.public_key", "receipt_salts.salt"),
}


async def sealed_secrets(services: Services) -> list[SealedSecret]:
    """Return all sealed secrets."""
    rows = [row for kind in KINDS for row in await services.store.secrets.page(kind, None, 10_000)]
    return [row for row in rows if row.sealed]


async def store_secrets(settings: Settings, count: int) -> None:
    """Store `count` upstream keys of a user."""
    async with open_services(settings) as services:
        user = await create_user(services, "ann@x.y", "user")
        for number in range(count):
            await services.store.catalog.add_key(user.id, str(number), services.adapters.vault.seal(f"sk-{number}"))


async def decrypt_all(settings: Settings, keys: list[bytes]) -> list[str]:
    """Return all secrets, decrypted with `keys`; raise an error if one cannot be decrypted."""
    async with open_services(settings) as services:
        return [Vault(keys).open(secret.sealed) for secret in await sealed_secrets(services)]


async def test_a_server_works_on_while_the_key_is_rotated(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        settings = Settings(data_dir=tmp_path / "data")
        token, admin = await server.token(), await server.token("admin")
        new = {"name": "gpt", "kind": "openai", "url": fake.at("answer"), "key": "sk-model"}
        assert (await server.ask("POST", "/api/models", admin, json=new))[0] == 201
        caller = Caller(user_id=1, token_id=1, role="user", email="ann@x.y")
        hook = WebhookTarget(url="https://example.com", secret=Secret("whsec_" + "c2ln" * 8))
        ask = Ask(door="test", caller=caller, body=b'"hi"', target="echo", webhook=hook, due_seconds=600)
        job = await submit(server.services, ask)
        # when another process puts a new key first, and seals all secrets with it
        [old] = load_keys(settings.key_path)
        async with open_services(settings) as other:
            with keys_locked(settings.key_path):
                put_new_key_first(settings.key_path, added=False)
                assert await rotate_secrets(other) == RotationResult(count=2, unreadable=0)
                assert await rotate_secrets(other) == RotationResult(count=0, unreadable=0)
        new_key = load_keys(settings.key_path)[0]
        assert new_key != old
        sealed_webhook = '{"url":"https://example.com","secret":"whsec_' + "c2ln" * 8 + '"}'
        assert sorted(await decrypt_all(settings, [new_key])) == ["sk-model", sealed_webhook]
        # then the server opens its secrets, although it started with the old key only
        server.services.caches.keys.invalidate()
        assert (await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "gpt")))[0] == 200
        assert fake.requests[-1].headers["authorization"] == "Bearer sk-model"
        row = await server.services.store.jobs.get(job.id)
        assert row is not None
        assert server.services.adapters.vault.open(row.deliver[0].sealed or b"") == sealed_webhook
        # and the new key opens the secrets that it seals, so that the old key can be deleted
        status, _ = await server.ask("POST", "/api/keys", token, json={"name": "n", "key": "sk-own"})
        assert status == 201
        assert drop_old_keys(settings.key_path) == 1
        assert sorted(await decrypt_all(settings, load_keys(settings.key_path)))[:2] == ["sk-model", "sk-own"]


async def test_a_host_without_the_key_of_the_others_refuses_to_start(tmp_path: Path) -> None:
    first = Settings(data_dir=tmp_path / "first")
    async with open_services(first) as services:
        secret = services.adapters.vault.seal("sk")
    # given a second host on the same database, with no key or with one of its own
    second = Settings(data_dir=tmp_path / "second", database_url=first.store_url)
    for _ in range(2):
        with pytest.raises(WrongKey, match=r"Copy the keys of the other hosts"):
            async with open_services(second):
                pass
        # then it has made no key that could be taken for the right one
        assert not second.key_path.exists()
    load_or_create_keys(second.key_path)
    with pytest.raises(WrongKey, match=re.escape(str(second.key_path))):
        async with open_services(second):
            pass
    # and a setting is named in place of a file that is not used
    in_setting = Settings(
        data_dir=second.data_dir, database_url=first.store_url, secret_key=SecretStr(Fernet.generate_key().decode())
    )
    with pytest.raises(WrongKey, match=r"than those in the setting `secret_key`\.") as caught:
        async with open_services(in_setting):
            pass
    assert str(second.key_path) not in str(caught.value)
    # and it starts with the key of the first one, from a file or from a setting
    shutil.copy(first.key_path, second.key_path)
    key = first.key_path.read_text().strip()
    for settings in (
        second,
        Settings(data_dir=tmp_path / "third", database_url=first.store_url, secret_key_file=first.key_path),
        Settings(data_dir=tmp_path / "fourth", database_url=first.store_url, secret_key=SecretStr(key)),
    ):
        async with open_services(settings) as services:
            assert services.adapters.vault.open(secret) == "sk"


async def test_an_operator_who_lost_the_key_can_go_on_with_another_one(tmp_path: Path) -> None:
    settings, environment = Settings(data_dir=tmp_path / "data"), clean_environment(tmp_path / "data")
    await store_secrets(settings, 1)
    settings.key_path.unlink()
    with pytest.raises(WrongKey, match="signoff key accept"):
        async with open_services(settings):
            pass
    output = await asyncio.to_thread(signoff, environment, "key", "accept")
    assert "Servers with this key start again" in output
    async with open_services(settings) as services:
        [secret] = await sealed_secrets(services)
        assert not services.adapters.vault.is_newest(secret.sealed)


async def test_a_wrong_key_is_noticed_in_a_database_of_an_earlier_version(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    async with open_services(settings) as services:
        user = await services.store.people.put_user("ann@x.org", "user")
        await services.store.catalog.add_key(user.id, "mine", services.adapters.vault.seal("sk"))
        await execute(services.store, sa.delete(encryption_keys))
    key = settings.key_path.read_bytes()
    settings.key_path.unlink()
    with pytest.raises(WrongKey):
        async with open_services(settings):
            pass
    settings.key_path.write_bytes(key)
    async with open_services(settings) as services:
        assert len(await services.store.secrets.key_fingerprints()) == 1


async def test_an_added_key_decrypts_before_it_is_used_to_encrypt(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    await store_secrets(settings, 1)
    path = settings.key_path
    [first] = load_keys(path)
    with pytest.raises(Conflict):
        put_new_key_first(path, added=True)
    add_new_key(path)
    assert load_keys(path)[0] == first
    added = load_keys(path)[1]
    put_new_key_first(path, added=True)
    assert load_keys(path) == [added, first]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_secrets_that_no_key_opens_are_counted_and_left_unchanged(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    foreign = Vault([Fernet.generate_key()])
    async with open_services(settings) as services:
        user = await create_user(services, "ann@x.y", "user")
        for number in range(2):
            await services.store.catalog.add_key(user.id, str(number), foreign.seal("sk"))
    await store_secrets(settings, 1)
    put_new_key_first(settings.key_path, added=False)
    async with open_services(settings) as services:
        before = await sealed_secrets(services)
        assert await rotate_secrets(services) == RotationResult(count=1, unreadable=2)
        assert (await sealed_secrets(services))[:2] == before[:2]


def test_the_keys_cannot_be_changed_twice_at_once(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with keys_locked(path), pytest.raises(Conflict), keys_locked(path):
        pass
    with keys_locked(path):
        pass


def test_a_killed_rotation_loses_no_secret_and_the_next_one_completes_it(tmp_path: Path) -> None:
    settings, environment = Settings(data_dir=tmp_path / "data"), clean_environment(tmp_path / "data")
    asyncio.run(store_secrets(settings, SECRETS))
    path = settings.key_path
    newest = {load_keys(path)[0]}

    # when rotations are killed, each a little later after its new key is written
    for attempt in range(3):
        before = load_keys(path)
        rotation = PreloadedProcess((*SIGNOFF, "key", "rotate"), env=environment, stdout=subprocess.PIPE)
        until(lambda before=before: load_keys(path) != before or None)
        time.sleep(0.1 * attempt)
        rotation.send_signal(signal.SIGKILL)
        rotation.communicate()
        newest.add(load_keys(path)[0])
        # then the existing keys open every secret
        assert sorted(asyncio.run(decrypt_all(settings, load_keys(path)))) == sorted(
            f"sk-{number}" for number in range(SECRETS)
        )
    assert len(newest) == 4
    # when a rotation completes, the old keys are unused, but cannot be deleted for an hour
    assert "Secrets encrypted with the new key: " in signoff(environment, "key", "rotate")
    result = run_command((*SIGNOFF, "key", "drop"), env=environment)
    assert (result.returncode, "less than an hour ago" in result.stderr) == (1, True)
    os.utime(path, (time.time() - 4000,) * 2)
    assert "Deleted old keys: 4" in signoff(environment, "key", "drop")
    assert len(load_keys(path)) == 1
    assert len(asyncio.run(decrypt_all(settings, load_keys(path)))) == SECRETS


async def test_the_key_of_receipts_is_encrypted_again(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    async with open_services(settings) as services:
        key = await services.store.receipts.public_key()
        put_new_key_first(settings.key_path, added=False)
        assert await rotate_secrets(services) == RotationResult(count=1, unreadable=0)
    assert drop_old_keys(settings.key_path) == 1
    async with open_services(settings) as services:
        assert (await services.store.receipts.head()).count == 1
        assert await services.store.receipts.public_key() == key
        receipt = await services.store.receipts.rotate()
        assert (receipt.seq, receipt.new_key != receipt.key) == (2, True)


async def test_without_its_key_no_receipt_is_signed_until_the_key_is_replaced(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    async with open_services(settings) as services:
        await services.store.receipts.head()
    settings.key_path.unlink()
    async with open_services(settings, checks_key=False) as services:
        for work in (services.store.receipts.head(), services.store.receipts.rotate()):
            with pytest.raises(Unreadable):
                await work
        receipt = await services.store.receipts.rotate(is_lost=True)
        assert (receipt.seq, receipt.key) == (2, receipt.new_key)
        assert (await services.store.receipts.head()).count == 2


def has_bytes(kind: inspect.Type) -> bool:
    """Return True if a value of the type may have binary members, which may be sealed secrets."""
    waiting, seen = [kind], set[int]()  # types may contain themselves
    while waiting:
        match waiting.pop():
            case inspect.BytesType():
                return True
            case inspect.StructType() as struct if id(struct) not in seen:
                seen.add(id(struct))
                waiting += [field.type for field in struct.fields]
            case inspect.UnionType(types=members) | inspect.TupleType(item_types=members):
                waiting += members
            case inspect.VarTupleType(item_type=member) | inspect.ListType(item_type=member):
                waiting.append(member)
            case inspect.DictType(value_type=member):
                waiting.append(member)
            case _:
                pass
    return False


def test_each_column_that_may_have_sealed_secrets_has_a_kind() -> None:
    columns = [column for table in metadata.tables.values() for column in table.c]
    binary = {str(column) for column in columns if isinstance(column.type, sa.LargeBinary)}
    of_json = [column for column in columns if isinstance(column.type, JsonColumn)]
    with_bytes = {str(column) for column in of_json if has_bytes(inspect.type_info(column.type.value_type))}
    assert (binary | with_bytes) - NOT_SEALED == {str(column) for column in SEALED_COLUMNS.values()}
    assert set(SEALED_COLUMNS) == set(KINDS)


async def test_webhooks_of_batches_and_queues_are_encrypted_again_before_old_keys_are_deleted(tmp_path: Path) -> None:
    settings, environment = Settings(data_dir=tmp_path / "data"), clean_environment(tmp_path / "data")
    async with open_services(settings) as services:
        await store_webhooks(services, services.adapters.vault)
    put_new_key_first(settings.key_path, added=False)
    output = await asyncio.to_thread(signoff, environment, "key", "drop", "--at-once")
    assert "Secrets encrypted with the new key: 2." in output
    assert sorted(await decrypt_all(settings, load_keys(settings.key_path))) == ["of a batch", "of a queue"]


async def test_old_keys_stay_while_secrets_cannot_be_decrypted(tmp_path: Path) -> None:
    settings, environment = Settings(data_dir=tmp_path / "data"), clean_environment(tmp_path / "data")
    async with open_services(settings) as services:
        await store_webhooks(services, Vault([Fernet.generate_key()]))
    put_new_key_first(settings.key_path, added=False)
    keys = load_keys(settings.key_path)
    drop = (*SIGNOFF, "key", "drop", "--at-once")
    result = await asyncio.to_thread(run_command, drop, env=environment)
    assert result.returncode == 1
    assert "No key decrypts some secrets (batch: 1, review_queue: 1). Append their key to" in result.stderr
    assert load_keys(settings.key_path) == keys
    # and an operator who has lost the key can go on
    assert "Deleted old keys: 1." in await asyncio.to_thread(signoff, environment, "key", "drop", "--at-once", "--lost")


async def test_secrets_that_only_an_old_key_decrypts_are_counted(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    async with open_services(settings) as services:
        await store_webhooks(services, services.adapters.vault)
        assert await count_old_secrets(services) == ({}, {})
        put_new_key_first(settings.key_path, added=False)
        assert await count_old_secrets(services) == ({"batch": 1, "review_queue": 1}, {})


async def store_webhooks(services: Services, vault: Vault) -> None:
    """Store a batch and a review queue with webhooks."""
    caller = Caller(user_id=1, token_id=1, role="user", email="ann@x.y")
    plain: dict[str, Any] = {"user_id": 1, "api": "openai", "endpoint": "/v1/responses", "input_file_id": "file-x"}
    webhook = vault.seal("of a batch")
    batch = Batch(id="batch_1", caller=caller, webhook=webhook, webhook_host="a", **plain)
    await services.store.batches.insert(batch, window_seconds=60)
    queue = ReviewQueue(name="legal", sealed=vault.seal("of a queue"), webhook_host="a")
    await services.store.review_queues.put(queue)
