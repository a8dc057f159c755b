"""Decompression of bodies, as the header `Content-Encoding` of HTTP names it (RFC 9110, 8.4)."""

import zlib

from signoff.errors import BadBody, BadRequest, TooLarge

# Formats of zlib: gzip with its header, and deflate with the header of zlib.
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
PLAIN = {"", "identity", "utf-8", "utf8"}


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return `body` without its compression, which is read no further than `max_bytes`.

    A name of a character set, as some clients write there, is no compression.

    Raises:
        BadRequest: the encoding is not known.
        BadBody: the body is not in that encoding, or incomplete.
        TooLarge: the body has more than `max_bytes`.
    """
    name = encoding.strip().lower()
    if name in PLAIN:
        return body
    if name not in WINDOW_BITS:
        raise BadRequest(f"`Content-Encoding` must be gzip, deflate or identity (got {encoding!r}).")
    decompressor = zlib.decompressobj(WINDOW_BITS[name])
    try:
        plain = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadBody(f"The body is not {name}, as its encoding says: {error}.") from None
    if len(plain) > max_bytes:
        raise TooLarge(f"The body is larger than {max_bytes} bytes when it is decompressed.")
    if not decompressor.eof or decompressor.unused_data:
        raise BadBody(f"The body is not one complete {name} stream, as its encoding says.")
    return plain
