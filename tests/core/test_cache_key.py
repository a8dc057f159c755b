"""Tests of cache keys: which requests are equal, which answers are stored, and when."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signoff.core.api_paths import CHAT, EMBEDDINGS, RESPONSES
from signoff.core.cache import (
    CacheControl,
    Sampling,
    canonical_parameters,
    compute_cache_key,
    has_versions,
    is_cacheable,
    is_complete,
    parse_cache_control,
    with_usage,
)
from signoff.core.model import Model, ModelIndex, Timeouts, version_of
from signoff.core.parse_cost import MAX_BYTES, MAX_CONTAINERS
from signoff.core.reviews.policy import JobPolicy
from signoff.core.tokens import Usage

DEFAULTS: dict[str, Any] = {
    "scope": "user:1",
    "path": CHAT,
    "target": "m",
    "versions": "v1",
    "policy": JobPolicy(),
    "body": b'{"a":1}',
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def same(one: str, other: str, path: str = CHAT) -> bool:
    return canonical_parameters(one.encode(), path) == canonical_parameters(other.encode(), path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":[1,2]}', ' { "b" : [ 1 , 2 ] , "a" : 1 } '),
        ('{"a":{"x":1,"y":{"p":1,"q":2}}}', '{"a":{"y":{"q":2,"p":1},"x":1}}'),
        ('{"a":"é"}', '{"a":"\\u00e9"}'),
        ('{"a":"/\\n"}', '{"a":"\\/\\u000a"}'),
        ('{"a":"😀"}', '{"a":"\\ud83d\\ude00"}'),
        ('{"é":1}', '{"\\u00e9":1}'),
        ('{"a":1,"stream":true}', '{"a":1}'),
        ('{"a":1,"stream":false,"stream_options":{"include_usage":true}}', '{"a":1,"stream":true}'),
    ],
)
def test_equivalent_requests_are_equal(one: str, other: str) -> None:
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":[1,2]}', '{"a":[2,1]}'),
        ('{"a":1}', '{"a":1.0}'),
        ('{"a":0.1}', '{"a":0.10}'),
        ('{"a":0.1}', '{"a":0.1000000000000000055511151231257827}'),
        ('{"a":1e2}', '{"a":1E2}'),
        ('{"a":123456789012345678901234567890}', '{"a":123456789012345678901234567891}'),
        ('{"a":1}', '{"a":"1"}'),
        ('{"a":1}', '{"a":true}'),
        ('{"a":null}', "{}"),
        ('{"a":""}', '{"a":null}'),
        ('{"a":"é"}', '{"a":"e\\u0301"}'),
        ('{"a":1}', '{"A":1}'),
        ('{"a":{"stream":true}}', '{"a":{}}'),
        ('{"a":[]}', '{"a":{}}'),
        ('{"a":1,"a":2}', '{"a":2}'),
        ('{"a":1,"a":2}', '{"a":1}'),
        ('{"a":1,"a":1}', '{"a":1}'),
        ('{"x":{"a":1,"a":2}}', '{"x":{"a":2}}'),
        ('{"a":1,"\\u0061":2}', '{"a":2}'),
        ('{"a":1,"a":2,"stream":true}', '{"a":1,"a":2}'),
        ('{"m":[{"r":"u","c":"evil","c":"kind"}]}', '{"m":[{"r":"u","c":"kind"}]}'),
    ],
)
def test_different_requests_are_not_equal(one: str, other: str) -> None:
    assert not same(one, other)


def test_for_an_endpoint_without_streams_every_member_counts() -> None:
    assert not same('{"a":1,"stream":true}', '{"a":1}', EMBEDDINGS)


@given(values, st.randoms())
def test_the_order_of_members_and_the_escaping_of_texts_do_not_count(value: Any, random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = [(name, shuffled(inner)) for name, inner in value.items()]
            random.shuffle(items)
            return dict(items)
        return [shuffled(inner) for inner in value] if isinstance(value, list) else value

    one = json.dumps({"x": value})
    other = json.dumps({"x": shuffled(value)}, ensure_ascii=False, indent=random.choice([None, 2]))
    assert same(one, other)


@given(values, values)
def test_requests_with_different_values_are_not_equal(one: Any, other: Any) -> None:
    if msgspec.json.encode(one, order="sorted") != msgspec.json.encode(other, order="sorted"):
        assert not same(json.dumps({"x": one}), json.dumps({"x": other}))


@pytest.mark.parametrize(
    "other",
    [
        {"scope": "user:2"},
        {"scope": "shared"},
        {"path": RESPONSES},
        {"target": "m2"},
        {"versions": "v2"},
        {"policy": JobPolicy(review="always")},
        {"policy": JobPolicy(undo_seconds=1)},
        {"policy": JobPolicy(deadline_seconds=5, on_deadline="approve")},
        {"body": b'{"a":2}'},
    ],
)
def test_every_part_of_a_key_counts(other: dict[str, Any]) -> None:
    assert compute_cache_key(**DEFAULTS) == compute_cache_key(**DEFAULTS)
    assert compute_cache_key(**(DEFAULTS | other)) != compute_cache_key(**DEFAULTS)


def test_the_parts_of_a_key_are_separated() -> None:
    assert compute_cache_key(**(DEFAULTS | {"scope": "a", "target": "bc"})) != compute_cache_key(
        **(DEFAULTS | {"scope": "ab", "target": "c"})
    )


def test_a_key_contains_its_versions() -> None:
    key = compute_cache_key(**DEFAULTS)
    assert key is not None
    assert has_versions(key, "v1")
    assert not has_versions(key, "v")
    assert not has_versions(key, "v2")


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"a":NaN}', b"[" * 100_000, b'{"a":"\\ud800"}', b'{"a":"\xff"}', b"\xff\xfe"]
)
def test_an_unreadable_body_has_no_key(body: bytes) -> None:
    assert compute_cache_key(**(DEFAULTS | {"body": body})) is None


def test_a_body_that_is_too_large_has_no_key() -> None:
    at_most = json.dumps("x" * (MAX_BYTES - 2)).encode()
    assert compute_cache_key(**(DEFAULTS | {"body": at_most})) is not None
    assert compute_cache_key(**(DEFAULTS | {"body": at_most + b" "})) is None


def test_a_body_with_too_many_containers_has_no_key() -> None:
    at_most = json.dumps([[]] * (MAX_CONTAINERS - 1)).encode()
    assert compute_cache_key(**(DEFAULTS | {"body": at_most})) is not None
    assert compute_cache_key(**(DEFAULTS | {"body": b"[" + at_most + b"]"})) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"url": "http://other/v1"},
        {"upstream_model": "other"},
        {"key_id": 2},
        {"kind": "http"},
        {"command": ("x",)},
        {"review": "always"},
        {"timeouts": Timeouts(total_seconds=1)},
    ],
)
def test_every_change_of_a_model_changes_its_version(changed: dict[str, Any]) -> None:
    model = Model(name="m", kind="openai", url="http://one/v1")
    index = ModelIndex([model])
    assert index.version_of(model) == index.version_of(model) == version_of(model)
    assert index.version_of(msgspec.structs.replace(model, **changed)) != index.version_of(model)
    assert version_of(model) == version_of(msgspec.structs.replace(model))
    assert version_of(msgspec.structs.replace(model, **changed)) != version_of(model)


@pytest.mark.parametrize(
    ("body", "repeatable"),
    [
        ('{"temperature":0}', True),
        ('{"temperature":0.0}', True),
        ('{"temperature":-0e5}', True),
        ('{"seed":0}', True),
        ('{"seed":7,"temperature":1}', True),
        ('{"temperature":0.0001}', False),
        ('{"temperature":"0"}', False),
        ('{"temperature":null,"seed":null}', False),
        ('{"temperature":[0]}', False),
        ('{"temperature":false}', False),
        ("{}", False),
    ],
)
def test_a_request_is_repeatable_with_a_seed_or_temperature_zero(body: str, repeatable: bool) -> None:
    sampling = msgspec.json.decode(body, type=Sampling)
    assert sampling.is_repeatable is repeatable
    assert is_cacheable(None, None, None, sampling=sampling) is repeatable
    # the first rule that is set decides
    assert is_cacheable("always", "never", sampling=sampling)
    assert not is_cacheable(None, "never", "always", sampling=sampling)


@pytest.mark.parametrize(
    ("headers", "fresh"),
    [
        ([], CacheControl()),
        (["no-store"], CacheControl(no_store=True)),
        (["No-Cache"], CacheControl(no_cache=True)),
        (["max-age=60"], CacheControl(max_age_seconds=60)),
        (['max-age="60", no-cache'], CacheControl(max_age_seconds=60, no_cache=True)),
        (["max-age=60", "no-store, max-age=5"], CacheControl(max_age_seconds=5, no_store=True)),
        (["max-age=0"], CacheControl(max_age_seconds=0)),
        (["max-age=soon"], CacheControl(max_age_seconds=0)),
        (["max-age=-5"], CacheControl(max_age_seconds=0)),
        (["max-age=99999999999999"], CacheControl(max_age_seconds=0)),
        (["max-stale=5, no-transform, ,=,no-storeish"], CacheControl()),
    ],
)
def test_cache_control_headers_are_parsed(headers: list[str], fresh: CacheControl) -> None:
    assert parse_cache_control(headers) == fresh


@pytest.mark.parametrize(
    ("path", "answer", "whole"),
    [
        (CHAT, b'{"choices":[]}', True),
        (CHAT, b'"words"', True),
        (CHAT, b'{"error":{"message":"no"}}', False),
        (CHAT, b'{"error":null,"choices":[]}', True),
        (RESPONSES, b'{"status":"completed"}', True),
        (RESPONSES, b'{"status":"incomplete"}', True),
        (RESPONSES, b'{"status":"queued"}', False),
        (RESPONSES, b'{"status":"in_progress"}', False),
        (RESPONSES, b'{"status":"failed"}', False),
        (CHAT, b'{"status":"queued"}', True),
    ],
)
def test_an_incomplete_answer_is_not_stored(path: str, answer: bytes, whole: bool) -> None:
    assert is_complete(path, answer) is whole


def test_a_streamed_answer_is_stored_with_its_usage() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    assert json.loads(with_usage(CHAT, b'{"choices":[]}', usage))["usage"]["total_tokens"] == 3
    with_own_usage = b'{"choices":[],"usage":{"total_tokens":9}}'
    assert with_usage(CHAT, with_own_usage, usage) == with_own_usage
    for other in (b'"words"', b'{"a":1}', b"[1]"):
        assert with_usage(CHAT, other, usage) == other
    assert with_usage(EMBEDDINGS, b'{"choices":[]}', usage) == b'{"choices":[]}'
    assert with_usage(CHAT, b'{"choices":[]}', None) == b'{"choices":[]}'
