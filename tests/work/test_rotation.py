"""Changing the key that seals: no stored secret is lost, whoever writes meanwhile, and whenever it is ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fakes.upstream import fake_upstream
from signoff.catalog import SealedSecret
from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.delivery import WebhookTarget
from signoff.core.signing import Secret
from signoff.errors import Conflict
from signoff.infra.vault import Vault, add_new_key, drop_old_keys, existing_keys, keys_locked, put_new_key_first
from signoff.server.bootstrap import open_services
from signoff.settings import Settings
from signoff.work.admin.people import create_user
from signoff.work.admin.rotation import RotationResult, reseal
from signoff.work.services import Services
from signoff.work.submit import submit
from support.live_server import chat, live
from support.processes import SIGNOFF, clean_environment, signoff, until

pytestmark = pytest.mark.anyio
SECRETS = 400


async def sealed(services: Services) -> list[SealedSecret]:
    """All that is sealed."""
    found = [one for kind in ("key", "job", "stream") for one in await services.store.secrets.page(kind, None, 10_000)]  # type: ignore[arg-type]
    return [one for one in found if one.sealed]


async def filled(settings: Settings, count: int) -> None:
    async with open_services(settings) as services:
        user = await create_user(services, "ann@x.y", "user")
        for number in range(count):
            await services.store.catalog.add_key(user.id, str(number), services.adapters.vault.seal(f"sk-{number}"))


async def opened_with(settings: Settings, keys: list[bytes]) -> list[str]:
    """What those keys open; fails for what they do not."""
    async with open_services(settings) as services:
        return [Vault(keys).open(one.sealed) for one in await sealed(services)]


async def test_a_server_goes_on_while_the_key_changes(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        settings = Settings(data_dir=tmp_path / "data")
        token, admin = await server.token(), await server.token("admin")
        new = {"name": "gpt", "kind": "openai", "url": fake.at("mirror"), "key": "sk-model"}
        assert (await server.ask("POST", "/api/models", admin, json=new))[0] == 201
        caller = Caller(user_id=1, token_id=1, role="user", email="ann@x.y")
        hook = WebhookTarget(url="https://example.com", secret=Secret("whsec_" + "c2ln" * 8))
        waiting = Ask(door="test", caller=caller, body=b'"hi"', target="echo", webhook=hook, due_seconds=600)
        job = await submit(server.services, waiting)
        # when another process puts a new key first, and seals all with it
        [old] = existing_keys(settings.key_path)
        async with open_services(settings) as other:
            with keys_locked(settings.key_path):
                put_new_key_first(settings.key_path, added=False)
                assert await reseal(other) == RotationResult(count=2, unreadable=0)
                assert await reseal(other) == RotationResult(count=0, unreadable=0)
        new_key = existing_keys(settings.key_path)[0]
        assert new_key != old
        assert sorted(await opened_with(settings, [new_key])) == ["sk-model", "whsec_" + "c2ln" * 8]
        # then the server opens what it had, though it began with the old key alone
        server.services.caches.keys.invalidate()
        assert (await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "gpt")))[0] == 200
        assert fake.requests[-1].headers["authorization"] == "Bearer sk-model"
        kept = await server.services.store.jobs.get(job.id)
        assert kept is not None
        assert server.services.adapters.vault.open(kept.deliver[0].sealed or b"") == "whsec_" + "c2ln" * 8
        # and what it seals, the new key opens, so that the old one can go
        status, _ = await server.ask("POST", "/api/keys", token, json={"name": "n", "key": "sk-own"})
        assert status == 201
        assert drop_old_keys(settings.key_path) == 1
        assert sorted(await opened_with(settings, existing_keys(settings.key_path)))[:2] == ["sk-model", "sk-own"]


async def test_a_key_that_was_added_opens_before_it_seals(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    await filled(settings, 1)
    path = settings.key_path
    [first] = existing_keys(path)
    with pytest.raises(Conflict):
        put_new_key_first(path, added=True)
    add_new_key(path)
    assert existing_keys(path)[0] == first
    added = existing_keys(path)[1]
    put_new_key_first(path, added=True)
    assert existing_keys(path) == [added, first]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_no_key_opens_is_left_alone_and_told(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    await filled(settings, 2)
    settings.key_path.unlink()
    await filled(settings, 1)
    put_new_key_first(settings.key_path, added=False)
    async with open_services(settings) as services:
        before = await sealed(services)
        assert await reseal(services) == RotationResult(count=1, unreadable=2)
        assert (await sealed(services))[:2] == before[:2]


def test_two_who_change_the_keys_do_not_do_so_at_once(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with keys_locked(path), pytest.raises(Conflict), keys_locked(path):
        pass
    with keys_locked(path):
        pass


def test_a_rotation_that_is_killed_loses_nothing_and_the_next_one_ends_it(tmp_path: Path) -> None:
    settings, environment = Settings(data_dir=tmp_path / "data"), clean_environment(tmp_path / "data")
    asyncio.run(filled(settings, SECRETS))
    path = settings.key_path
    newest = {existing_keys(path)[0]}

    # when rotations are killed, each a moment later after its new key stands
    for turn in range(3):
        before = existing_keys(path)
        rotation = subprocess.Popen((*SIGNOFF, "key", "rotate"), env=environment, stdout=subprocess.PIPE)
        until(lambda before=before: existing_keys(path) != before or None)
        time.sleep(0.1 * turn)
        rotation.send_signal(signal.SIGKILL)
        rotation.communicate()
        newest.add(existing_keys(path)[0])
        # then every secret opens, with the keys that are there
        assert sorted(asyncio.run(opened_with(settings, existing_keys(path)))) == sorted(
            f"sk-{number}" for number in range(SECRETS)
        )
    assert len(newest) == 4
    # when one is left to its end, the old ones are of no use, but stay for an hour
    assert "Secrets encrypted with the new key: " in signoff(environment, "key", "rotate")
    told = subprocess.run((*SIGNOFF, "key", "drop"), env=environment, capture_output=True, text=True, check=False)
    assert (told.returncode, "less than an hour ago" in told.stderr) == (1, True)
    os.utime(path, (time.time() - 4000,) * 2)
    assert "Deleted old keys: 4" in signoff(environment, "key", "drop")
    assert len(existing_keys(path)) == 1
    assert len(asyncio.run(opened_with(settings, existing_keys(path)))) == SECRETS
