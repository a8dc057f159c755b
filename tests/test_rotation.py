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
from live import chat, live
from processes import SIGNOFF, clean_environment, signoff, until
from signoff.app import opened
from signoff.catalog import Sealed
from signoff.core.access import Caller
from signoff.core.ask import Ask
from signoff.core.delivery import Hook
from signoff.core.signing import Secret
from signoff.errors import Conflict
from signoff.settings import Settings
from signoff.vault import Vault, add_new_key, drop_old_keys, keys_locked, put_new_key_first, standing_keys
from signoff.work.desk import Desk
from signoff.work.people import create_user
from signoff.work.reseal import Resealed, reseal
from signoff.work.submit import submit

pytestmark = pytest.mark.anyio
SECRETS = 400


async def sealed(desk: Desk) -> list[Sealed]:
    """All that is sealed."""
    found = [one for kind in ("key", "job", "stream") for one in await desk.store.secrets.page(kind, None, 10_000)]  # type: ignore[arg-type]
    return [one for one in found if one.sealed]


async def filled(settings: Settings, count: int) -> None:
    async with opened(settings) as desk:
        user = await create_user(desk, "ann@x.y", "user")
        for number in range(count):
            await desk.store.catalog.add_key(user.id, str(number), desk.vault.seal(f"sk-{number}"))


async def opened_with(settings: Settings, keys: list[bytes]) -> list[str]:
    """What those keys open; fails for what they do not."""
    async with opened(settings) as desk:
        return [Vault(keys).open(one.sealed) for one in await sealed(desk)]


async def test_a_server_goes_on_while_the_key_changes(tmp_path: Path) -> None:
    async with live(tmp_path) as server, fake_upstream() as fake:
        settings = Settings(data_dir=tmp_path / "data")
        token, admin = await server.token(), await server.token("admin")
        new = {"name": "gpt", "kind": "openai", "url": fake.at("mirror"), "key": "sk-model"}
        assert (await server.ask("POST", "/api/models", admin, json=new))[0] == 201
        caller = Caller(user_id=1, token_id=1, role="user", email="ann@x.y")
        hook = Hook(url="https://example.com", secret=Secret("whsec_" + "c2ln" * 8))
        waiting = Ask(door="test", caller=caller, body=b'"hi"', target="echo", deliver=hook, due_seconds=600)
        job = await submit(server.desk, waiting)
        # when another process puts a new key first, and seals all with it
        [old] = standing_keys(settings.key_path)
        async with opened(settings) as other:
            with keys_locked(settings.key_path):
                put_new_key_first(settings.key_path, added=False)
                assert await reseal(other) == Resealed(count=2, unreadable=0)
                assert await reseal(other) == Resealed(count=0, unreadable=0)
        new_key = standing_keys(settings.key_path)[0]
        assert new_key != old
        assert sorted(await opened_with(settings, [new_key])) == ["sk-model", "whsec_" + "c2ln" * 8]
        # then the server opens what it had, though it began with the old key alone
        server.desk.keys.forget()
        assert (await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "gpt")))[0] == 200
        assert fake.requests[-1].headers["authorization"] == "Bearer sk-model"
        kept = await server.desk.store.jobs.get(job.id)
        assert kept is not None
        assert server.desk.vault.open(kept.deliver[0].sealed or b"") == "whsec_" + "c2ln" * 8
        # and what it seals, the new key opens, so that the old one can go
        status, _ = await server.ask("POST", "/api/keys", token, json={"name": "n", "key": "sk-own"})
        assert status == 201
        assert drop_old_keys(settings.key_path) == 1
        assert sorted(await opened_with(settings, standing_keys(settings.key_path)))[:2] == ["sk-model", "sk-own"]


async def test_a_key_that_was_added_opens_before_it_seals(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    await filled(settings, 1)
    path = settings.key_path
    [first] = standing_keys(path)
    with pytest.raises(Conflict):
        put_new_key_first(path, added=True)
    add_new_key(path)
    assert standing_keys(path)[0] == first
    added = standing_keys(path)[1]
    put_new_key_first(path, added=True)
    assert standing_keys(path) == [added, first]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_no_key_opens_is_left_alone_and_told(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    await filled(settings, 2)
    settings.key_path.unlink()
    await filled(settings, 1)
    put_new_key_first(settings.key_path, added=False)
    async with opened(settings) as desk:
        before = await sealed(desk)
        assert await reseal(desk) == Resealed(count=1, unreadable=2)
        assert (await sealed(desk))[:2] == before[:2]


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
    newest = {standing_keys(path)[0]}

    # when rotations are killed, each a moment later after its new key stands
    for turn in range(3):
        before = standing_keys(path)
        rotation = subprocess.Popen((*SIGNOFF, "key", "rotate"), env=environment, stdout=subprocess.PIPE)
        until(lambda before=before: standing_keys(path) != before or None)
        time.sleep(0.1 * turn)
        rotation.send_signal(signal.SIGKILL)
        rotation.communicate()
        newest.add(standing_keys(path)[0])
        # then every secret opens, with the keys that are there
        assert sorted(asyncio.run(opened_with(settings, standing_keys(path)))) == sorted(
            f"sk-{number}" for number in range(SECRETS)
        )
    assert len(newest) == 4
    # when one is left to its end, the old ones are of no use, but stay for an hour
    assert "Secrets that were sealed anew" in signoff(environment, "key", "rotate")
    told = subprocess.run((*SIGNOFF, "key", "drop"), env=environment, capture_output=True, text=True, check=False)
    assert (told.returncode, "within the hour" in told.stderr) == (1, True)
    os.utime(path, (time.time() - 4000,) * 2)
    assert "Old keys that were forgotten: 4" in signoff(environment, "key", "drop")
    assert len(standing_keys(path)) == 1
    assert len(asyncio.run(opened_with(settings, standing_keys(path)))) == SECRETS
