"""The format of API tokens: `sg_`, 32 base62 characters (190 bits), and a checksum of six characters.

The format follows GitHub's tokens (github.blog, "Behind GitHub's new authentication token formats"):
the checksum tells a typing error from a wrong token without a database query.
"""

import hashlib
import hmac
import re
import string
import zlib

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX = "sg_"
SECRET_LENGTH = 32
CHECKSUM_LENGTH = 6
_TOKEN = re.compile(f"{PREFIX}([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})")


def format_token(secret: str) -> str:
    """Return the token for `secret`, which is SECRET_LENGTH random characters of ALPHABET."""
    return f"{PREFIX}{secret}{_checksum(secret)}"


def is_well_formed(token: str) -> bool:
    """Return True if `token` has the format and its checksum is right."""
    match = _TOKEN.fullmatch(token)
    return match is not None and match[2] == _checksum(match[1])


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token in hexadecimal, which is all that is stored of it."""
    return hashlib.sha256(token.encode()).hexdigest()


def digests_equal(one: str, other: str) -> bool:
    """Compare two digests in constant time."""
    return hmac.compare_digest(one, other)


def _checksum(secret: str) -> str:
    number, digits = zlib.crc32(secret.encode()), ""
    while number:
        number, remainder = divmod(number, len(ALPHABET))
        digits = ALPHABET[remainder] + digits
    return digits.rjust(CHECKSUM_LENGTH, "0")
