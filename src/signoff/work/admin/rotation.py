"""Key rotation: encrypt every stored secret with the newest key, while servers run."""

import msgspec

from signoff.catalog import SealedKind, SealedSecret
from signoff.infra.vault import Unreadable
from signoff.work.services import Services

PAGE_SIZE = 500
KINDS: tuple[SealedKind, ...] = ("key", "job", "stream")


class RotationResult(msgspec.Struct, frozen=True):
    """The result of a key rotation."""

    count: int
    """The number of secrets that were encrypted again."""
    unreadable: int
    """The number of secrets that no key decrypts."""


async def rotate_secrets(services: Services) -> RotationResult:
    """Encrypt all secrets with the newest key. It can be interrupted and started again, as newest ones are skipped."""
    count = unreadable = 0
    for kind in KINDS:
        after: str | None = None
        while page := await services.store.secrets.page(kind, after, PAGE_SIZE):
            after = page[-1].place
            for secret in page:
                if not secret.sealed or services.adapters.vault.is_newest(secret.sealed):
                    continue
                try:
                    count += await _reseal_secret(services, secret)
                except Unreadable:
                    unreadable += 1
    return RotationResult(count, unreadable)


async def _reseal_secret(services: Services, secret: SealedSecret) -> bool:
    """Encrypt the secret again; return False if it was replaced or removed meanwhile. Raises Unreadable."""
    return await services.store.secrets.replace(
        secret, services.adapters.vault.seal(services.adapters.vault.open(secret.sealed))
    )
