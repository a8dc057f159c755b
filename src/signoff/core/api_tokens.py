"""What a token looks like: `sg_`, 32 base62 characters (190 bits), and a checksum of six.

The form follows GitHub's tokens (github.blog, "Behind GitHub's new authentication token formats"):
a typing error is told from a wrong token without a look at the database.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import string
import zlib

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX = "sg_"
SECRET_LENGTH = 32
CHECKSUM_LENGTH = 6
_FORM = re.compile(f"{PREFIX}([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})")


def format_token(secret: str) -> str:
    """The whole token for `secret`, which is SECRET_LENGTH random characters of ALPHABET."""
    return f"{PREFIX}{secret}{_checksum(secret)}"


def is_well_formed(token: str) -> bool:
    """Whether `token` can be one of ours at all."""
    found = _FORM.fullmatch(token)
    return found is not None and found[2] == _checksum(found[1])


def digest(token: str) -> str:
    """What is stored of a token: its SHA-256 in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def digests_equal(one: str, other: str) -> bool:
    """Whether two digests are equal, in constant time."""
    return hmac.compare_digest(one, other)


def _checksum(secret: str) -> str:
    number, letters = zlib.crc32(secret.encode()), ""
    while number:
        number, rest = divmod(number, len(ALPHABET))
        letters = ALPHABET[rest] + letters
    return letters.rjust(CHECKSUM_LENGTH, "0")
