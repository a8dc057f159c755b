"""Key rotation: encrypt every stored secret with the newest key, while servers run.

URLs of webhooks that earlier versions stored in clear are encrypted too.
"""

from collections import Counter
from collections.abc import AsyncGenerator
from typing import get_args

import msgspec

from signoff.catalog import SealedKind, SealedSecret
from signoff.core.delivery import SealedWebhook
from signoff.errors import WrongKey
from signoff.infra.vault import Unreadable
from signoff.work.services import Services

PAGE_SIZE = 500
KINDS: tuple[SealedKind, ...] = get_args(SealedKind)


class RotationResult(msgspec.Struct, frozen=True):
    """The result of a key rotation."""

    count: int
    """The number of secrets that were encrypted again."""
    unreadable: int
    """The number of secrets that no key decrypts."""


async def check_key(services: Services, source: str) -> None:
    """Check that this process can decrypt the secrets of the database; record its key if there is none yet.

    A host with a key of its own would store secrets that no other host can read. Raises WrongKey.

    Args:
        services: The dependencies.
        source: The place of the keys of this host, for the message.
    """
    own, known = services.adapters.vault.fingerprints, await services.store.secrets.key_fingerprints()
    if known.isdisjoint(own) and (known or not await _can_open_any(services)):
        raise WrongKey(
            f"The secrets of this database are encrypted with another key than those in {source}. Copy the keys of the "
            "other hosts there: from their setting `secret_key`, or from the file of their `secret_key_file` "
            "(`secret.key` in their data folder). If that key is lost, run `signoff key accept`."
        )
    if own[0] not in known:
        await services.store.secrets.add_key_fingerprint(own[0])


async def _can_open_any(services: Services) -> bool:
    """Return True unless there is a stored key that no key of this process decrypts."""
    page = await services.store.secrets.page("key", None, 1)
    try:
        return all(services.adapters.vault.open(secret.sealed) for secret in page)
    except Unreadable:
        return False


async def rotate_secrets(services: Services) -> RotationResult:
    """Encrypt all secrets with the newest key. It can be interrupted and started again, as newest ones are skipped."""
    count = unreadable = 0
    async for secret in _unsafe_secrets(services):
        try:
            count += await _reseal_secret(services, secret)
        except Unreadable:
            unreadable += 1
    await services.store.secrets.add_key_fingerprint(services.adapters.vault.fingerprints[0])
    return RotationResult(count, unreadable)


async def count_old_secrets(services: Services) -> tuple[Counter[SealedKind], Counter[SealedKind]]:
    """Return the numbers of secrets that only an old key decrypts, and of those that no key decrypts, by kind."""
    old, unreadable = Counter[SealedKind](), Counter[SealedKind]()
    async for secret in _unsafe_secrets(services):
        try:
            _ = secret.sealed and services.adapters.vault.open(secret.sealed)
            old[secret.kind] += 1
        except Unreadable:
            unreadable[secret.kind] += 1
    return old, unreadable


async def _unsafe_secrets(services: Services) -> AsyncGenerator[SealedSecret]:
    for kind in KINDS:
        after: str | None = None
        while page := await services.store.secrets.page(kind, after, PAGE_SIZE):
            after = page[-1].id
            for secret in page:
                if not _is_safe(services, secret):
                    yield secret


def _is_safe(services: Services, secret: SealedSecret) -> bool:
    """Return True if no part of the secret is in clear text or encrypted with an old key."""
    return not secret.clear_url and (not secret.sealed or services.adapters.vault.is_newest(secret.sealed))


async def _reseal_secret(services: Services, secret: SealedSecret) -> bool:
    """Encrypt the secret again, with the URL that an earlier version stored in clear.

    Return False if it was replaced or removed meanwhile. Raises Unreadable.
    """
    vault = services.adapters.vault
    text = vault.open(secret.sealed) if secret.sealed else None
    if secret.clear_url:
        text = msgspec.json.encode(SealedWebhook(url=secret.clear_url, secret=text)).decode()
    return await services.store.secrets.replace(secret, vault.seal(text or ""))
