"""Histograms of latencies: quantiles are near the exact ones, and histograms of parts add up."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from signoff.core.latency import MAX_ERROR, SHORTEST_US, Histogram, bucket_of, histogram_of, middle_of

LATENCIES = st.lists(st.integers(0, 10**12) | st.integers(0, 10**6), min_size=1)


@given(LATENCIES, st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_differs_from_the_exact_one_by_no_more_than_the_stated_error(
    values: list[int], share: float
) -> None:
    exact = sorted(max(value, SHORTEST_US) for value in values)[max(1, math.ceil(len(values) * share)) - 1]
    quantile = histogram_of(values).quantile(share)
    assert quantile is not None
    assert abs(quantile - exact) <= MAX_ERROR * exact


@given(st.integers(SHORTEST_US, 10**15))
def test_longer_latencies_are_in_no_earlier_bucket(value: int) -> None:
    assert bucket_of(value) <= bucket_of(value + 1)
    assert bucket_of(middle_of(bucket_of(value))) == bucket_of(value)


def test_no_latencies_have_no_quantile() -> None:
    assert Histogram({}).quantile(0.5) is None
    assert histogram_of([0]).quantile(0.5) == SHORTEST_US
