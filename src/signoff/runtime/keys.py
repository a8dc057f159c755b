"""Cache of decrypted upstream keys, cleared when any key changes."""

from signoff.catalog import Catalog
from signoff.infra.vault import Vault

MAX_ENTRIES = 1000


class UpstreamKeyCache:
    """Upstream keys by id."""

    def __init__(self, catalog: Catalog, vault: Vault) -> None:
        self._catalog = catalog
        self._vault = vault
        self._secrets: dict[int, str] = {}

    async def secret(self, key_id: int) -> str | None:
        """Return the decrypted key, or None if it does not exist. Raises Unreadable."""
        secrets = self._secrets  # `invalidate` replaces the dict, so a key read before it is not stored
        if key_id in secrets:
            return secrets[key_id]
        sealed = await self._catalog.key(key_id)
        if sealed is None:
            return None
        if len(secrets) >= MAX_ENTRIES:
            secrets.clear()
        secrets[key_id] = self._vault.open(sealed)
        return secrets[key_id]

    def invalidate(self) -> None:
        """Clear the cache."""
        self._secrets = {}
