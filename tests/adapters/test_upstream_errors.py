"""Error bodies of models in many shapes, and the error that each becomes."""

import json

import pytest

from signoff.engines.upstream_errors import MAX_MESSAGE_CHARS, answered_error, parse_error
from signoff.errors import ModelAccessDenied, ModelAnswered

TEXT = "Unknown name `web_search_options`."
SHAPES = {
    "OpenAI": {"error": {"message": TEXT, "type": "invalid_request_error", "param": None, "code": None}},
    "Google, in a list": [{"error": {"code": 400, "message": TEXT, "status": "INVALID_ARGUMENT", "details": [{}]}}],
    "Anthropic": {"type": "error", "error": {"type": "invalid_request_error", "message": TEXT}},
    "Ollama": {"error": TEXT},
    "Cohere": {"message": TEXT},
    "AWS": {"__type": "ValidationException", "Message": TEXT},
    "old vLLM": {"object": "error", "message": TEXT, "type": "BadRequestError", "param": None, "code": 400},
    "Cloudflare": {"success": False, "errors": [{"code": 7003, "message": TEXT}], "messages": []},
    "problem details": {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": TEXT},
    "problem details without details": {"type": "about:blank", "title": TEXT, "status": 400},
    "OAuth": {"error": "invalid_request", "error_description": TEXT},
    "Spring": {"timestamp": "2026-01-01", "status": 400, "error": "Bad Request", "message": TEXT, "path": "/v1"},
    "FastAPI": {"detail": TEXT},
    "an object in FastAPI's detail": {"detail": {"error": {"message": TEXT}}},
    "an object in the message": {"error": {"message": {"detail": TEXT}}},
    "JSON in the message": {"error": {"message": json.dumps({"error": {"message": TEXT}})}},
    "Baidu": {"error_code": 17, "error_msg": TEXT},
    "MiniMax": {"id": "c", "base_resp": {"status_code": 2013, "status_msg": TEXT}},
    "a list of texts": {"errors": [TEXT]},
    "camel case": {"errorCode": "E1", "errorMessage": TEXT},
    "Apigee": {"fault": {"faultstring": TEXT, "detail": {"errorcode": "policies.ratelimit"}}},
    "an exception": {"exception": TEXT},
    "a short name": {"ret": -1, "errmsg": TEXT},
    "a text": TEXT,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_error_in_any_shape_becomes_its_sentence(shape: object) -> None:
    assert parse_error(json.dumps(shape).encode()).message == TEXT


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", ""),
        (b"null", ""),
        (b"{}", ""),
        (b"  overloaded,\r\n try   later\n", "overloaded, try later"),
        (b"<html><head><title>502 Bad\n Gateway</title></head><body>nginx</body></html>", "502 Bad Gateway"),
        (b"<!doctype html><body><h1 class='x'>Access &amp; <b>rights</b></h1></body>", "Access & rights"),
        (b"<html><body><p>a page without a title</p></body></html>", ""),
        (b"<?xml version='1.0'?><Error><Code>X</Code><Message>No bucket</Message></Error>", "No bucket"),
        (b'event: error\ndata: {"error": {"message": "gone"}}\n\n', "gone"),
        (b'data: {"error": "gone"}\r\n\r\ndata: [DONE]\r\n\r\n', "gone"),
        (b"\x1f\x8b\x08\x00a part of a gzip body\xff", ""),
        (b"\x00\x1b[31mred\x1b[0m", "[31mred [0m"),
        (
            b'{"error":{"message":"Provider returned error","metadata":{"raw":"{\\"message\\":\\"no GPU\\"}"}}}',
            "Provider returned error: no GPU",
        ),
        (b'{"error":{"message":"Moderated","metadata":{"raw":{},"reasons":["x"]}}}', "Moderated"),
        (
            b'{"detail":[{"loc":["body","model"],"msg":"Field required","type":"missing"}]}',
            "body.model: Field required",
        ),
        (
            b'{"detail":[{"loc":["body",0],"msg":"a"},{"loc":["query","n"],"msg":"b"}]}',
            "body.0: a; query.n: b",
        ),
        (b'{"error":{"message":{"role":["must be a text"]}}}', "role: must be a text"),
        (b'{"code": 1234, "info": "no such model"}', "code: 1234; info: no such model"),
        (b'{"error": {"message": "no end', '{"error": {"message": "no end'),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"error": "\xe9t\xe9"}', "\ufffdt\ufffd"),
        (b'\xef\xbb\xbf{"error": "gone"}', "gone"),
        (b"[" * 10_000, "[" * (MAX_MESSAGE_CHARS - 1) + "\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_other_errors_become_one_line(body: bytes, message: str) -> None:
    assert parse_error(body).message == message


def test_a_message_is_bounded_and_has_one_line() -> None:
    message = parse_error(json.dumps({"errors": ["a\n" * MAX_MESSAGE_CHARS] * 50}).encode()).message

    assert len(message) == MAX_MESSAGE_CHARS
    assert "\n" not in message


def test_an_error_without_a_message_has_its_status() -> None:
    assert answered_error(503, b"").message == "The model answered with status 503."


@pytest.mark.parametrize("status", [401, 403])
def test_a_denied_key_is_a_fault_of_its_own(status: int) -> None:
    error = answered_error(status, b'{"error": {"message": "Incorrect API key provided"}}')

    assert isinstance(error, ModelAccessDenied)
    assert (error.status, error.retryable, error.is_account_fault) == (status, False, True)
    assert error.message == f"The model denied access to this server (status {status}): Incorrect API key provided"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (
            429,
            {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"},
        ),
        (429, {"message": "no money", "type": "insufficient_quota", "code": None}),
        (429, {"message": "hard limit", "type": "requests", "code": "billing_hard_limit_reached"}),
        (400, {"message": "no credit", "type": "billing_error"}),
        (503, {"message": "closed", "code": "ACCOUNT_DEACTIVATED"}),
        (429, {"message": "no money", "type": "exceeded_current_quota_error"}),
        (400, {"message": "Access denied, please make sure your account is in good standing.", "code": "Arrearage"}),
        (400, {"message": "Your credit balance is too low to access the API.", "type": "invalid_request_error"}),
        (429, {"message": "余额不足或无可用资源包,请充值。", "code": "1113"}),
        (400, {"message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}),
    ],
)
def test_an_account_without_credit_needs_no_retry(status: int, error: dict[str, object]) -> None:
    answered = answered_error(status, json.dumps({"error": error}).encode())

    assert (answered.status, answered.retryable, answered.is_account_fault) == (status, False, True)


@pytest.mark.parametrize(
    ("status", "is_retryable"),
    [
        (400, False),
        (404, False),
        (408, True),
        (409, True),
        (425, True),
        (429, True),
        (500, True),
        (501, False),
        (505, False),
        (511, False),
        (529, True),
    ],
)
def test_the_status_tells_if_a_retry_can_help(status: int, is_retryable: bool) -> None:
    assert answered_error(status, b"").retryable is is_retryable


@pytest.mark.parametrize(("should_retry", "is_retryable"), [("false", False), ("True", True)])
@pytest.mark.parametrize("status", [400, 503])
def test_the_model_tells_if_a_retry_can_help(status: int, should_retry: str, is_retryable: bool) -> None:
    assert answered_error(status, b"", headers={"x-should-retry": should_retry}).retryable is is_retryable


@pytest.mark.parametrize("code", ["context_length_exceeded", "content_filter", "DataInspectionFailed"])
def test_no_retry_helps_a_request_that_is_at_fault_whatever_the_status(code: str) -> None:
    body = json.dumps({"error": {"message": "x", "code": code}}).encode()
    assert not answered_error(500, body).retryable


def test_an_event_has_its_status_in_its_data() -> None:
    statuses = [
        answered_error(None, body).status
        for body in (b'{"error": {"code": 429}}', b'{"error": {"code": "503"}}', b'{"status": 401}', b'{"error": "x"}')
    ]
    assert statuses == [429, 503, 401, 502]


def test_the_limits_of_the_upstream_are_passed_on_and_no_other_header() -> None:
    headers = {"x-ratelimit-remaining-tokens": "7", "anthropic-ratelimit-requests-limit": "9", "set-cookie": "a=b"}

    error = answered_error(429, b"", headers=headers)

    assert isinstance(error, ModelAnswered)
    assert error.headers == {"x-ratelimit-remaining-tokens": "7", "anthropic-ratelimit-requests-limit": "9"}
