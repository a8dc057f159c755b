"""Secrets at rest."""

from __future__ import annotations

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st

from signoff.infra.vault import Unreadable, Vault, drop_old_keys, existing_keys, keys_in, put_new_key_first


def test_a_new_key_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data" / "secret.key"
    [key] = keys_in(path)
    assert Fernet(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["secret.key"]


def test_a_key_that_stands_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    first = keys_in(path)
    before = path.read_bytes()
    assert keys_in(path) == first
    assert path.read_bytes() == before


def test_of_many_who_make_the_key_at_once_all_use_one(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(keys_in, [path] * 200))
    assert len({tuple(keys) for keys in found}) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret.key"]


def test_of_two_processes_that_make_the_key_at_once_both_use_one(tmp_path: Path) -> None:
    # given two processes that stand at the start
    race = f"""
import pathlib, sys
from signoff.infra.vault import keys_in
print(flush=True)
sys.stdin.readline()
print(keys_in(pathlib.Path({str(tmp_path / "secret.key")!r}))[0].decode())
"""
    pipe = subprocess.PIPE
    runners = [subprocess.Popen([sys.executable, "-c", race], stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for runner in runners:
        assert runner.stdout is not None
        runner.stdout.readline()
    # when they start
    for runner in runners:
        assert runner.stdin is not None
        runner.stdin.write("\n")
        runner.stdin.flush()
    # then they got the same key, which is the file's
    keys = {runner.communicate(timeout=60)[0].strip() for runner in runners}
    assert keys == {(tmp_path / "secret.key").read_text().strip()}


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_what_is_sealed_can_be_opened_and_not_be_read(secret: str) -> None:
    vault = Vault([Fernet.generate_key()])
    sealed = vault.seal(secret)
    assert vault.open(sealed) == secret
    assert len(secret) < 4 or secret.encode() not in sealed
    assert sealed != vault.seal(secret)


def test_after_a_rotation_old_secrets_open_and_new_ones_need_the_new_key(tmp_path: Path) -> None:
    # given a secret under the first key
    path = tmp_path / "secret.key"
    [old] = keys_in(path)
    sealed = Vault([old]).seal("before")
    # when an operator puts a new key above it
    new = Fernet.generate_key()
    path.write_bytes(new + b"\n" + old + b"\n\n")
    rotated = Vault(keys_in(path))
    # then both open, and the new one seals
    assert rotated.open(sealed) == "before"
    assert Vault([new]).open(rotated.seal("after")) == "after"
    with pytest.raises(Unreadable):
        Vault([old]).open(rotated.seal("after"))


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: s[:20] + bytes([s[20] ^ 1]) + s[21:], lambda s: b""])
def test_what_was_changed_on_the_disk_is_not_opened(change: object) -> None:
    vault = Vault([Fernet.generate_key()])
    with pytest.raises(Unreadable):
        vault.open(change(vault.seal("secret")))  # type: ignore[operator]


def test_the_wrong_key_opens_nothing_and_says_so() -> None:
    sealed = Vault([Fernet.generate_key()]).seal("secret")
    with pytest.raises(Unreadable, match="the secret key is not the one it was encrypted with"):
        Vault([Fernet.generate_key()]).open(sealed)


@pytest.mark.parametrize("text", [b"", b"\n", b"nonsense\n", b"\xff" * 44])
def test_a_file_without_a_usable_key_is_refused_and_left_alone(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    path.write_bytes(text)
    with pytest.raises(Unreadable, match="The secret keys are not valid"):
        Vault(keys_in(path))
    assert path.read_bytes() == text


def test_what_a_process_sealed_opens_to_it_also_when_its_key_is_dropped(tmp_path: Path) -> None:
    """It may hold a copy for as long as it runs, which nobody else can seal anew."""
    path = tmp_path / "secret.key"
    vault = Vault(keys_in(path), reload_keys=lambda: existing_keys(path))
    held = vault.seal("declared")
    put_new_key_first(path, added=False)
    assert vault.open(vault.seal("new")) == "new"
    assert drop_old_keys(path) == 1
    assert vault.open(held) == "declared"
    assert not vault.is_newest(held)
    with pytest.raises(Unreadable):
        Vault(keys_in(path)).open(held)
