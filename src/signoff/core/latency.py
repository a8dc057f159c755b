"""Histograms of latencies: counts in buckets of a fixed relative width, which add up over any period.

Each power of two has PARTS buckets of equal width, as in HdrHistogram (https://hdrhistogram.org), so a quantile differs
from the exact one by at most MAX_ERROR of it.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

LatencyDimension = Literal["model", "hour", "day"]
PARTS = 8
MAX_ERROR = 1 / (2 * PARTS)
# Latencies below this one, in microseconds, count as this one, because buckets have whole microseconds.
SHORTEST_US = PARTS
_PART_BITS = PARTS.bit_length() - 1


class Histogram(msgspec.Struct, frozen=True):
    """Number of latencies in each bucket."""

    counts: dict[tuple[int, int], int]
    """Number by bucket: the exponent of its power of two, and the part of that."""

    @property
    def total(self) -> int:
        """Number of all latencies."""
        return sum(self.counts.values())

    def quantile(self, share: float) -> int | None:
        """Return the latency that this share of all do not exceed, in microseconds; None without latencies."""
        rank, seen = max(1, -(-self.total * share // 1)), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return middle_of(bucket)
        return None


class LatencyQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A query for the latencies of the requests that went to a model and have ended."""

    by: LatencyDimension | None = None
    """Dimension to group by; None for all requests together."""
    since: int = 0
    """Start of the range, rounded down to a whole hour; microseconds since 1970, UTC."""
    until: int | None = None
    """End of the range, rounded up to a whole hour and excluded; None for no end."""
    user_id: int | None = None
    """Owner of the jobs; None for all users."""


class LatencyRow(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies of some requests."""

    group: str | int | None
    """Value of the dimension of the query; None without one."""
    whole: Histogram
    """Times from the request to the end of the answer of the model."""
    first: Histogram
    """Times from the request to the first byte of the answer."""


def bucket_of(latency_us: int) -> tuple[int, int]:
    """Return the bucket of a latency in microseconds.

    >>> bucket_of(1000), bucket_of(1023), bucket_of(1024)
    ((9, 7), (9, 7), (10, 0))
    """
    value = max(latency_us, SHORTEST_US)
    exponent = value.bit_length() - 1
    return exponent, (value >> (exponent - _PART_BITS)) & (PARTS - 1)


def middle_of(bucket: tuple[int, int]) -> int:
    """Return the middle of a bucket, in microseconds.

    >>> middle_of(bucket_of(1000))
    992
    """
    exponent, part = bucket
    return (PARTS + part << exponent - _PART_BITS) + (1 << exponent - _PART_BITS >> 1)


def histogram_of(latencies_us: Iterable[int]) -> Histogram:
    """Return the histogram of some latencies."""
    return Histogram(dict(Counter(map(bucket_of, latencies_us))))
