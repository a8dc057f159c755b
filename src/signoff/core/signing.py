"""The secrets that messages are signed with: `whsec_` and base64, HMAC-SHA256, as Standard Webhooks 1.0 has it."""

from __future__ import annotations

import base64
import hashlib
import hmac

SECRET_PREFIX = "whsec_"  # noqa: S105 -- not a secret, but how one begins
SECRET_BYTES = range(24, 65)


class Secret:
    """A signing key, `whsec_` and base64; never shown, not even by `repr`. Raises ValueError for what is none."""

    def __init__(self, text: str) -> None:
        encoded = text.removeprefix(SECRET_PREFIX)
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            key = b""
        if not text.startswith(SECRET_PREFIX) or len(key) not in SECRET_BYTES:
            raise ValueError("A webhook secret is whsec_ and the base64 of 24 to 64 random bytes.")
        self._text, self._key = text, key

    def __repr__(self) -> str:
        return "Secret(…)"

    def reveal(self) -> str:
        """The secret as it was given."""
        return self._text

    def sign(self, content: bytes) -> str:
        """The signature of `content`, version 1."""
        return "v1," + base64.b64encode(hmac.digest(self._key, content, hashlib.sha256)).decode()


def secrets_in(text: str) -> tuple[Secret, ...]:
    """The secrets of a text, between blanks: two while one replaces the other. Raises ValueError."""
    return tuple(Secret(part) for part in text.split())
