"""Tests of the content codings of request bodies."""

import gzip
import zlib

import pytest

from signoff.core.content_coding import decode_content
from signoff.errors import BadRequest, TooLarge, UnsupportedEncoding

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
        ("identity", BODY),
        ("", BODY),
    ],
)
def test_a_body_is_decoded(coding: str, sent: bytes) -> None:
    assert decode_content(sent, coding, LIMIT) == BODY


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "gzip, br", "utf-8"])
def test_other_codings_are_refused(coding: str) -> None:
    with pytest.raises(UnsupportedEncoding):
        decode_content(b"", coding, LIMIT)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, raw_deflate])
def test_a_body_that_becomes_too_large_is_refused(compress: "object") -> None:
    assert callable(compress)
    coding = "gzip" if compress is gzip.compress else "deflate"
    bomb = compress(bytes(50_000_000))
    for sent, limit in ((compress(BODY), LIMIT - 1), (bomb, 1000), (bomb + bomb, 1000)):
        with pytest.raises(TooLarge):
            decode_content(sent, coding, limit)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("sent", [b"", b"{}", GZIPPED[:-9], GZIPPED + b"{}", b"x\x9c"])
def test_a_body_without_its_coding_is_malformed(coding: str, sent: bytes) -> None:
    with pytest.raises(BadRequest, match="not valid"):
        decode_content(sent, coding, LIMIT)
