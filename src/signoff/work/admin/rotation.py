"""Reseal: every stored secret is sealed anew with the key that seals now, while servers go on."""

from __future__ import annotations

import msgspec

from signoff.catalog import Sealed, SealedKind
from signoff.infra.vault import Unreadable
from signoff.work.services import Desk

PAGE = 500
KINDS: tuple[SealedKind, ...] = ("key", "job", "stream")


class Resealed(msgspec.Struct, frozen=True):
    """How many secrets were sealed anew, and how many no key opens."""

    count: int
    unreadable: int


async def reseal(desk: Desk) -> Resealed:
    """Goes through all secrets once. Ended in the middle, it can be begun again: what was done is passed over."""
    count = unreadable = 0
    for kind in KINDS:
        after: str | None = None
        while page := await desk.store.secrets.page(kind, after, PAGE):
            after = page[-1].place
            for secret in page:
                if not secret.sealed or desk.vault.is_newest(secret.sealed):
                    continue
                try:
                    count += await _sealed_anew(desk, secret)
                except Unreadable:
                    unreadable += 1
    return Resealed(count, unreadable)


async def _sealed_anew(desk: Desk, secret: Sealed) -> bool:
    """Whether it still stood: one that was replaced or removed meanwhile needs nothing."""
    return await desk.store.secrets.replace(secret, desk.vault.seal(desk.vault.open(secret.sealed)))
