"""Content codings of request bodies (RFC 9110, section 8.4): gzip and deflate, within a limit."""

import zlib

from signoff.errors import BadRequest, TooLarge, UnsupportedEncoding

# The format of zlib's input: gzip; zlib, which is what `deflate` means; and deflate without a frame, which some send.
_GZIP, _ZLIB, _RAW = 31, 15, -15


def decode_content(body: bytes, content_encoding: str, limit: int) -> bytes:
    """Return `body` without its coding, which is the value of `Content-Encoding`.

    Raises:
        UnsupportedEncoding: The coding is not gzip, deflate or identity, or there are several.
        TooLarge: The decoded body has more than `limit` bytes; no more than that is decoded.
        BadRequest: The body does not have this coding.
    """
    codings = [name for part in content_encoding.split(",") if (name := part.strip().lower()) not in {"", "identity"}]
    if not codings:
        return body
    try:
        match codings:
            case ["gzip" | "x-gzip"]:
                return _inflate(body, _GZIP, limit)
            case ["deflate"]:
                return _inflate(body, _ZLIB if _is_zlib(body) else _RAW, limit)
            case _:
                raise UnsupportedEncoding
    except zlib.error as error:
        raise BadRequest(f"The body is not valid {codings[0]} (`Content-Encoding`): {error}.") from None


def _inflate(body: bytes, window_bits: int, limit: int) -> bytes:
    """Return all members of `body`. Raises zlib.error, TooLarge."""
    decoded, rest = bytearray(), body
    while True:
        inflater = zlib.decompressobj(window_bits)
        decoded += inflater.decompress(rest, limit + 1 - len(decoded))
        if len(decoded) > limit:
            raise TooLarge(f"The decoded body must not be larger than {limit} bytes; send a smaller one.")
        if not inflater.eof:
            raise zlib.error("its end is missing")
        rest = inflater.unused_data
        if not rest.strip(b"\0"):  # gzip allows padding
            return bytes(decoded)


def _is_zlib(body: bytes) -> bool:
    """Return True if `body` begins with the header of a zlib stream (RFC 1950)."""
    return len(body) > 1 and body[0] & 15 == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
