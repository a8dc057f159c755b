"""Fingerprints: short texts that are equal for equal requests."""

import hashlib


def fingerprint(*parts: bytes) -> str:
    """Return the SHA-256 of `parts`, each preceded by its length, in hexadecimal."""
    pieces = [piece for part in parts for piece in (len(part).to_bytes(8, "big"), part)]
    return hashlib.sha256(b"".join(pieces)).hexdigest()
