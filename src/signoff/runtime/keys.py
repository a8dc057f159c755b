"""The upstream keys that this process has used: copies of the store's, opened, dropped when any of them changes."""

from __future__ import annotations

from signoff.catalog import Catalog
from signoff.infra.vault import Vault

REMEMBERED = 1000


class UpstreamKeyCache:
    """Upstream keys by their numbers."""

    def __init__(self, catalog: Catalog, vault: Vault) -> None:
        self._catalog = catalog
        self._vault = vault
        self._known: dict[int, str] = {}

    async def secret(self, key_id: int) -> str | None:
        """The key; None where it is gone. Raises Unreadable."""
        known = self._known  # a change that is heard of meanwhile makes another
        if key_id in known:
            return known[key_id]
        sealed = await self._catalog.key(key_id)
        if sealed is None:
            return None
        if len(known) >= REMEMBERED:
            known.clear()
        known[key_id] = self._vault.open(sealed)
        return known[key_id]

    def invalidate(self) -> None:
        """The copy is out of date."""
        self._known = {}
