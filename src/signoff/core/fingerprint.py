"""Fingerprints: short texts that are equal for equal requests."""

import hashlib


def fingerprint(*parts: bytes) -> str:
    """Return the SHA-256 of `parts`, each preceded by its length, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
