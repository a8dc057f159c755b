"""Tests of the content codings of requests and of answers."""

import gzip
import random
import sys
import zlib
from collections.abc import Callable

import brotli
import pytest

from signoff.core.content_coding import ContentDecoder, decode_content, known_codings
from signoff.errors import BadRequest, TooLarge, UnsupportedEncoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BODY = b'{"messages": []}' * 100
LIMIT = len(BODY)
GZIPPED = gzip.compress(BODY, mtime=0)  # with a time, each process would collect other tests


def raw_deflate(body: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(body) + deflater.flush()


@pytest.mark.parametrize(
    ("coding", "sent"),
    [
        ("gzip", GZIPPED),
        ("GZIP", GZIPPED),
        ("x-gzip", GZIPPED),
        ("gzip, identity", GZIPPED),
        ("gzip", gzip.compress(BODY[:7], mtime=0) + gzip.compress(BODY[7:], mtime=0)),
        ("gzip", GZIPPED + bytes(8)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("br", brotli.compress(BODY)),
        ("zstd", zstd.compress(BODY)),
        ("zstd", zstd.compress(BODY[:7]) + zstd.compress(BODY[7:])),
        ("deflate, gzip", gzip.compress(zlib.compress(BODY), mtime=0)),
        ("br, gzip", gzip.compress(brotli.compress(BODY), mtime=0)),
        ("identity", BODY),
        ("", BODY),
    ],
)
def test_a_body_is_decoded(coding: str, sent: bytes) -> None:
    assert decode_content(sent, coding, LIMIT) == BODY


@pytest.mark.parametrize("coding", ["compress", "gzip, compress", "gzip, gzip, gzip, gzip", "utf-8"])
def test_other_codings_are_refused(coding: str) -> None:
    with pytest.raises(UnsupportedEncoding):
        decode_content(b"", coding, LIMIT)


COMPRESSORS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstd.compress),
    "gzip twice": ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_body_that_becomes_too_large_is_refused(name: str) -> None:
    coding, compress = COMPRESSORS[name]
    bomb = compress(bytes(20_000_000))
    for sent, limit in ((compress(BODY), LIMIT - 1), (bomb, 1000), (bomb + bomb, 1000)):
        with pytest.raises(TooLarge):
            decode_content(sent, coding, limit)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("sent", [b"", b"{}", GZIPPED[:-9], GZIPPED + b"{}", b"x\x9c"])
def test_a_body_without_its_coding_is_malformed(coding: str, sent: bytes) -> None:
    with pytest.raises(BadRequest, match="not valid"):
        decode_content(sent, coding, LIMIT)


def test_a_frame_with_a_larger_window_than_the_standard_allows_is_refused() -> None:
    noise = random.Random(1).randbytes(20_000_000)
    options = {zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.compression_level: 1}
    compressor = zstd.ZstdCompressor(options=options)
    sent = compressor.compress(noise) + compressor.flush()  # without its size, the window is as large as it says
    with pytest.raises(BadRequest, match="not valid"):
        decode_content(sent, "zstd", 2 * len(noise))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_pieces_decode_to_what_their_whole_decodes_to(name: str) -> None:
    coding, compress = COMPRESSORS[name]
    sent = compress(BODY)
    decoder = ContentDecoder(known_codings(coding), LIMIT)
    assert not decoder.has_begun
    assert b"".join(decoder.feed(sent[at : at + 1]) for at in range(len(sent))) == BODY
    assert decoder.has_begun
    assert decoder.is_complete


def test_names_that_are_no_known_coding_are_left_out_of_those_of_an_answer() -> None:
    assert known_codings("UTF-8, aws-chunked, X-Gzip, identity, none") == ["x-gzip"]
