"""Secrets for signing messages with HMAC-SHA256, as in Standard Webhooks 1.0."""

import base64
import hashlib
import hmac

SECRET_PREFIX = "whsec_"  # noqa: S105 -- the prefix of secrets
SECRET_BYTES = range(24, 65)


class Secret:
    """A signing key, written as `whsec_` and base64. Its `repr` does not show it.

    Raises:
        ValueError: the text is not such a secret.
    """

    def __init__(self, text: str) -> None:
        encoded = text.removeprefix(SECRET_PREFIX)
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            key = b""
        if not text.startswith(SECRET_PREFIX) or len(key) not in SECRET_BYTES:
            raise ValueError("A webhook secret must be `whsec_` followed by the base64 of 24 to 64 random bytes.")
        self._text, self._key = text, key

    def __repr__(self) -> str:
        return "Secret(…)"

    def reveal(self) -> str:
        """Return the secret as text."""
        return self._text

    def sign(self, content: bytes) -> str:
        """Return the signature of `content`, in version 1 of the scheme."""
        return "v1," + base64.b64encode(hmac.digest(self._key, content, hashlib.sha256)).decode()


def secrets_in(text: str) -> tuple[Secret, ...]:
    """Parse secrets that are separated by blanks, such as two during a rotation. Raises ValueError."""
    return tuple(Secret(part) for part in text.split())
