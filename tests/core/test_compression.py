"""Decompression: bounded, complete streams only, and clear errors."""

import gzip
import zlib

import pytest

from signoff.core.compression import decompress
from signoff.errors import BadBody, BadRequest, TooLarge

TEXT = b'{"body": {"prompt": "x"}}'


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(gzip.compress(TEXT, mtime=0), "gzip"), (gzip.compress(TEXT, mtime=0), " GZIP"), (zlib.compress(TEXT), "deflate")]
    + [(TEXT, name) for name in ("identity", "", "utf-8")],
)
def test_a_body_is_decompressed_as_its_encoding_says(body: bytes, encoding: str) -> None:
    assert decompress(body, encoding, len(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("body", "encoding", "fault"),
    [
        (TEXT, "gzip", BadBody),
        (gzip.compress(TEXT, mtime=0)[:-9], "gzip", BadBody),
        (gzip.compress(TEXT, mtime=0) + b"x", "gzip", BadBody),
        (b"", "gzip", BadBody),
        (zlib.compress(TEXT), "gzip", BadBody),
        (gzip.compress(TEXT + b" ", mtime=0), "gzip", TooLarge),
        (gzip.compress(bytes(10**6), mtime=0), "gzip", TooLarge),
        (TEXT, "br", BadRequest),
    ],
)
def test_a_body_in_another_encoding_or_too_large_is_refused(body: bytes, encoding: str, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        decompress(body, encoding, len(TEXT))
