"""Tests of the headers that pass on to models: which names may pass, and which headers count as part of a request."""

import pytest

from signoff.core.headers import (
    DEFAULT_HEADERS,
    MAX_HEADERS,
    comparable_headers,
    header_names_fault,
    restrict_headers,
    select_headers,
)

RAW = [
    (b"authorization", b"Bearer secret"),
    (b"cookie", b"a=b"),
    (b"openai-beta", b"assistants=v2"),
    (b"anthropic-beta", b"one"),
    (b"anthropic-beta", b"two"),
    (b"traceparent", b"00-1-2-01"),
    (b"x-custom", b"caf\xe9"),
]


def test_the_named_headers_pass_and_repeated_ones_are_joined() -> None:
    assert select_headers(RAW, DEFAULT_HEADERS) == {
        "openai-beta": "assistants=v2",
        "anthropic-beta": "one, two",
        "traceparent": "00-1-2-01",
    }
    assert select_headers(RAW, ("X-Custom",)) == {"x-custom": "café"}
    assert select_headers(RAW, ()) is None
    assert select_headers([], DEFAULT_HEADERS) is None


def test_a_fallback_gets_only_what_its_own_list_names() -> None:
    assert restrict_headers({"openai-beta": "1", "x-custom": "2"}, ("X-Custom",)) == {"x-custom": "2"}


def test_headers_of_traces_do_not_make_requests_different() -> None:
    assert comparable_headers(None) == comparable_headers({"traceparent": "1", "x-request-id": "2"}) == b""
    assert (
        comparable_headers({"b": "2", "a": "1", "tracestate": "3"}) == comparable_headers({"a": "1", "b": "2"}) != b""
    )
    assert comparable_headers({"a": "1"}) != comparable_headers({"a": "2"})


@pytest.mark.parametrize("name", [*DEFAULT_HEADERS, "x-custom", "X-Tenant", "baggage", "accept-language", "user-agent"])
def test_a_harmless_name_may_pass(name: str) -> None:
    assert header_names_fault([name]) is None


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "Proxy-Authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "api-key",
        "X-Auth-User",
        "x-goog-api-key",
        "x-csrftoken",
        "connection",
        "Transfer-Encoding",
        "te",
        "host",
        "content-type",
        "content-length",
        "expect",
        "x-signoff-model",
        "idempotency-key",
        "x-forwarded-for",
        "prefer",
        "",
        "a b",
        "x-custom*",
        "x\r\ny",
    ],
)
def test_credentials_and_headers_of_the_connection_never_pass(name: str) -> None:
    fault = header_names_fault(["x-custom", name])

    assert fault is not None
    assert "`pass_headers` must" in fault


def test_the_number_of_names_is_bounded() -> None:
    assert header_names_fault([f"x-{number}" for number in range(MAX_HEADERS)]) is None
    assert header_names_fault([f"x-{number}" for number in range(MAX_HEADERS + 1)]) is not None
