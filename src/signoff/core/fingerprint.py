"""Fingerprints: one short text for equal requests."""

from __future__ import annotations

import hashlib


def fingerprint(*parts: bytes) -> str:
    """Return the SHA-256 of `parts`, each with its length, in hexadecimal."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.hexdigest()
