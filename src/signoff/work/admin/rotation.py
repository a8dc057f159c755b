"""Reseal: every stored secret is sealed anew with the key that seals now, while servers go on."""

from __future__ import annotations

import msgspec

from signoff.catalog import SealedKind, SealedSecret
from signoff.infra.vault import Unreadable
from signoff.work.services import Services

PAGE = 500
KINDS: tuple[SealedKind, ...] = ("key", "job", "stream")


class RotationResult(msgspec.Struct, frozen=True):
    """How many secrets were sealed anew, and how many no key opens."""

    count: int
    unreadable: int


async def reseal(services: Services) -> RotationResult:
    """Goes through all secrets once. Ended in the middle, it can be begun again: what was done is passed over."""
    count = unreadable = 0
    for kind in KINDS:
        after: str | None = None
        while page := await services.store.secrets.page(kind, after, PAGE):
            after = page[-1].place
            for secret in page:
                if not secret.sealed or services.adapters.vault.is_newest(secret.sealed):
                    continue
                try:
                    count += await _sealed_anew(services, secret)
                except Unreadable:
                    unreadable += 1
    return RotationResult(count, unreadable)


async def _sealed_anew(services: Services, secret: SealedSecret) -> bool:
    """Whether it still stood: one that was replaced or removed meanwhile needs nothing."""
    return await services.store.secrets.replace(
        secret, services.adapters.vault.seal(services.adapters.vault.open(secret.sealed))
    )
