"""Content codings (RFC 9110, section 8.4) of requests, of messages, and of answers of models.

gzip and deflate (RFC 1950 to 1952), br (RFC 7932) and zstd (RFC 8878), each within a limit.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import brotli

from signoff.errors import BadRequest, TooLarge, UnsupportedEncoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# `Accept-Encoding` of this server.
ACCEPTED_CODINGS = "gzip, deflate, br, zstd"
# Codings of one body; each more multiplies what a small body can become.
MAX_CODINGS = 3
# The format of zlib's input: gzip; zlib, which is what `deflate` means; and deflate without a frame, which some send.
_GZIP, _ZLIB, _RAW = 31, 15, -15
_PADDING = b"\0"
# The largest window that a body may use, as a power of 2 in bytes (RFC 9659).
_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
_BROTLI_ERROR = cast("type[Exception]", cast("Any", brotli).error)


def parse_codings(content_encoding: str) -> list[str]:
    """Return the names in a `Content-Encoding`, in lower case and without `identity`, in the order of their use."""
    names = (part.strip().lower() for part in content_encoding.split(","))
    return [name for name in names if name not in {"", "identity"}]


def known_codings(content_encoding: str) -> list[str]:
    """Return the codings of an answer that can be decoded; servers write other things into the header, too."""
    return [name for name in parse_codings(content_encoding) if name in _DECODERS]


def decode_content(body: bytes, content_encoding: str, limit: int) -> bytes:
    """Return `body` without its codings, which are the value of `Content-Encoding`.

    Raises:
        UnsupportedEncoding: A coding is unknown, or there are more than MAX_CODINGS.
        TooLarge: The decoded body has more than `limit` bytes; no more than that is decoded.
        BadRequest: The body does not have this coding.
    """
    codings = parse_codings(content_encoding)
    if not codings:
        return body
    if len(codings) > MAX_CODINGS or not all(name in _DECODERS for name in codings):
        raise UnsupportedEncoding
    decoder = ContentDecoder(codings, limit)
    try:
        decoded = decoder.feed(body)
    except ValueError as error:
        raise BadRequest(f"The body is not valid {content_encoding} (`Content-Encoding`): {error}.") from None
    if not decoder.is_complete:
        raise BadRequest(f"The body is not valid {content_encoding} (`Content-Encoding`): its end is missing.")
    return decoded


class ContentDecoder:
    """Decoder of one body, which may come in pieces.

    Args:
        codings: Names of known codings, in the order of their use.
        limit: Largest number of decoded bytes.
    """

    def __init__(self, codings: Sequence[str], limit: int) -> None:
        self._decoders = [_Decoder(_DECODERS[name], limit) for name in reversed(codings)]

    @property
    def is_complete(self) -> bool:
        """True at the end of a body."""
        return all(decoder.is_complete for decoder in self._decoders)

    @property
    def has_begun(self) -> bool:
        """True once bytes of the body have been decoded."""
        return self._decoders[-1].size_bytes > 0

    def feed(self, data: bytes) -> bytes:
        """Return what the next bytes decode to. Raises ValueError for malformed ones, TooLarge above the limit."""
        for decoder in self._decoders:
            data = decoder.feed(data)
        return data


class _Decompressor(Protocol):
    """Decompressor of one member of a body, as zlib and zstd have it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Decoder:
    """Decoder of one coding, whose body may have several members, such as a frame for each event of a stream."""

    def __init__(self, make: Callable[[bytes], _Decompressor], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._member: _Decompressor | None = None
        self.size_bytes = 0
        """Number of bytes that have been decoded."""

    @property
    def is_complete(self) -> bool:
        """True at the end of a member."""
        return self._member is not None and self._member.eof

    def feed(self, data: bytes) -> bytes:
        """See `ContentDecoder.feed`."""
        pieces = list[bytes]()
        while data:
            if self._member is None or self._member.eof:
                if self._member is not None and not data.strip(_PADDING):  # gzip allows padding
                    break
                self._member = self._make(data)
            try:
                piece = self._member.decompress(data, self._limit + 1 - self.size_bytes)
            except (zlib.error, zstd.ZstdError, _BROTLI_ERROR) as error:
                raise ValueError(str(error)) from error
            self.size_bytes += len(piece)
            if self.size_bytes > self._limit:
                raise TooLarge(f"The decoded body must not be larger than {self._limit} bytes; send a smaller one.")
            pieces.append(piece)
            data = self._member.unused_data if self._member.eof else b""
        return b"".join(pieces)


class _Brotli:
    """Decompressor of brotli, which has one member and refuses what follows it."""

    unused_data = b""

    def __init__(self) -> None:
        self._decompressor = cast("Any", brotli).Decompressor()

    @property
    def eof(self) -> bool:
        return self._decompressor.is_finished()

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._decompressor.process(data, output_buffer_limit=max_length)


def _inflater(data: bytes) -> _Decompressor:
    """Return the decompressor of `deflate`; the first byte of a zlib stream names its method (RFC 1950)."""
    return zlib.decompressobj(_ZLIB if data[0] & 15 == zlib.DEFLATED else _RAW)


_DECODERS: dict[str, Callable[[bytes], _Decompressor]] = {
    "gzip": lambda _: zlib.decompressobj(_GZIP),
    "x-gzip": lambda _: zlib.decompressobj(_GZIP),
    "deflate": _inflater,
    "br": lambda _: _Brotli(),
    "zstd": lambda _: zstd.ZstdDecompressor(options=_ZSTD_OPTIONS),
}
