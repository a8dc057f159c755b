"""Encryption of secrets at rest."""

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

from signoff.infra.vault import Unreadable, Vault, drop_old_keys, load_keys, load_or_create_keys, put_new_key_first


def test_only_the_owner_can_read_a_new_key(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data" / "secret.key"
    [key] = load_or_create_keys(path)
    assert Fernet(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["secret.key"]


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    first = load_or_create_keys(path)
    before = path.read_bytes()
    assert load_or_create_keys(path) == first
    assert path.read_bytes() == before


def test_concurrent_threads_that_create_the_key_use_the_same_one(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(load_or_create_keys, [path] * 200))
    assert len({tuple(keys) for keys in results}) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret.key"]


def test_two_processes_that_create_the_key_at_once_use_the_same_one(tmp_path: Path) -> None:
    # given two processes that wait for a line of input
    script = f"""
import pathlib, sys
from signoff.infra.vault import load_or_create_keys
print(flush=True)
sys.stdin.readline()
print(load_or_create_keys(pathlib.Path({str(tmp_path / "secret.key")!r}))[0].decode())
"""
    pipe = subprocess.PIPE
    processes = [subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    # when both continue
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    # then both have the key of the file
    keys = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert keys == {(tmp_path / "secret.key").read_text().strip()}


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_a_sealed_secret_can_be_opened_and_is_not_readable(secret: str) -> None:
    vault = Vault([Fernet.generate_key()])
    sealed = vault.seal(secret)
    assert vault.open(sealed) == secret
    assert len(secret) < 4 or secret.encode() not in sealed
    assert sealed != vault.seal(secret)


def test_after_a_rotation_old_secrets_open_and_new_ones_need_the_new_key(tmp_path: Path) -> None:
    # given a secret under the first key
    path = tmp_path / "secret.key"
    [old] = load_or_create_keys(path)
    sealed = Vault([old]).seal("before")
    # when an operator puts a new key above it
    new = Fernet.generate_key()
    path.write_bytes(new + b"\n" + old + b"\n\n")
    rotated = Vault(load_or_create_keys(path))
    # then both open, and the new one seals
    assert rotated.open(sealed) == "before"
    assert Vault([new]).open(rotated.seal("after")) == "after"
    with pytest.raises(Unreadable):
        Vault([old]).open(rotated.seal("after"))


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: s[:20] + bytes([s[20] ^ 1]) + s[21:], lambda s: b""])
def test_a_sealed_secret_that_was_changed_is_not_opened(change: object) -> None:
    vault = Vault([Fernet.generate_key()])
    with pytest.raises(Unreadable):
        vault.open(change(vault.seal("secret")))  # type: ignore[operator]


def test_the_wrong_key_is_an_error_that_gives_the_reason() -> None:
    sealed = Vault([Fernet.generate_key()]).seal("secret")
    with pytest.raises(Unreadable, match="the secret key is not the one it was encrypted with"):
        Vault([Fernet.generate_key()]).open(sealed)


@pytest.mark.parametrize("text", [b"", b"\n", b"nonsense\n", b"\xff" * 44])
def test_a_file_without_a_usable_key_is_refused_and_unchanged(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    path.write_bytes(text)
    with pytest.raises(Unreadable, match="The secret keys are not valid"):
        Vault(load_or_create_keys(path))
    assert path.read_bytes() == text


def test_a_process_can_open_what_it_sealed_after_its_key_was_dropped(tmp_path: Path) -> None:
    # A process may hold sealed copies in memory, which no rotation can seal with the new key.
    path = tmp_path / "secret.key"
    vault = Vault(load_or_create_keys(path), reload_keys=lambda: load_keys(path))
    sealed = vault.seal("declared")
    put_new_key_first(path, added=False)
    assert vault.open(vault.seal("new")) == "new"
    assert drop_old_keys(path) == 1
    assert vault.open(sealed) == "declared"
    assert not vault.is_newest(sealed)
    with pytest.raises(Unreadable):
        Vault(load_or_create_keys(path)).open(sealed)
