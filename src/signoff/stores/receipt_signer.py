"""Signing keys of receipts: Ed25519 keys that the database has sealed."""

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from signoff.infra.vault import Vault


class ReceiptSigner:
    """Access to the signing keys, by the vault that seals them. It keeps the keys that it has opened."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._opened = dict[bytes, Ed25519PrivateKey]()

    def open(self, public_key: bytes, sealed: bytes) -> Ed25519PrivateKey:
        """Return the private key of `public_key`. Raises Unreadable if the vault has not the key that sealed it."""
        if public_key not in self._opened:
            data = base64.b64decode(self._vault.open(sealed))
            self._opened[public_key] = Ed25519PrivateKey.from_private_bytes(data)
        return self._opened[public_key]

    def create(self) -> tuple[Ed25519PrivateKey, bytes]:
        """Return a new private key, and the same key sealed."""
        key = Ed25519PrivateKey.generate()
        return key, self._vault.seal(base64.b64encode(key.private_bytes_raw()).decode())
