"""Hashes of passwords."""

import argon2
import pytest

from signoff.runtime.passwords import PasswordHasher

pytestmark = pytest.mark.anyio


async def test_a_hash_costs_what_rfc_9106_recommends_and_verifies_its_password_alone() -> None:
    hasher = PasswordHasher()
    try:
        password_hash = await hasher.hash("correct horse")
        parameters = argon2.extract_parameters(password_hash)
        assert parameters.type is argon2.Type.ID
        # Section 4 of the RFC: 3 passes over 64 MiB where memory is scarce. One lane, as hashes are made in one thread.
        assert (parameters.time_cost, parameters.memory_cost, parameters.parallelism) == (3, 64 * 1024, 1)
        assert await hasher.verify(password_hash, "correct horse")
        assert not await hasher.verify(password_hash, "wrong horse")
        assert not hasher.is_outdated(password_hash)
    finally:
        hasher.close()


async def test_without_a_hash_no_password_is_right() -> None:
    hasher = PasswordHasher()
    try:
        assert not await hasher.verify(None, "no user has this password")
    finally:
        hasher.close()
