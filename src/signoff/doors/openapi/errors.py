"""Responses of errors in the OpenAPI document, in the format of each API."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from signoff.doors import generate, jobs
from signoff.doors.errors import PROBLEM
from signoff.doors.openai.anthropic_errors import is_anthropic

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer"}
_CODE: Schema = {"type": "string", "description": "Stable code of the error."}
_JOB: Schema = {"type": "string", "description": "Id of the job, if there is one."}
FORMATS: dict[str, Schema] = {
    "Problem": {
        "type": "object",
        "description": "Problem details (RFC 9457).",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": _TEXT,
            "title": _TEXT,
            "status": _NUMBER,
            "detail": {"type": "string", "description": "What is wrong, and what to do."},
            "code": _CODE,
            "job_id": _JOB,
            "position": {"type": "integer", "description": "Position of the error in the text of a pipeline."},
            "line": _NUMBER,
            "column": _NUMBER,
        },
    },
    "JobsError": {
        "type": "object",
        "description": "Error of the job API.",
        "required": ["status", "code", "message"],
        "properties": {"status": {"type": "string", "const": "error"}, "code": _CODE, "message": _TEXT},
    },
    "DetailError": {
        "type": "object",
        "description": "Error of the queue API and of cached calls.",
        "required": ["detail", "code"],
        "properties": {"detail": _TEXT, "code": _CODE, "job_id": _JOB},
    },
    "ContentError": {
        "type": "object",
        "description": "Error of the API of models by id; the code is in the header `x-signoff-code`.",
        "required": ["content"],
        "properties": {"content": _TEXT, "job_id": _JOB},
    },
    "OpenAIError": {
        "type": "object",
        "description": "Error in the format of OpenAI's API; that of a model may have other members.",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message"],
                "properties": {
                    "message": _TEXT,
                    "type": {"type": ["string", "null"]},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                    "job_id": _JOB,
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "description": "Error in the format of Anthropic's API; that of a model may have other members.",
        "required": ["type", "error"],
        "properties": {
            "type": {"type": "string", "const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": _TEXT, "message": _TEXT, "code": _CODE, "job_id": _JOB},
            },
            "request_id": {"type": ["string", "null"]},
        },
    },
}
_MEANINGS = {
    400: "A parameter or the body is malformed or has an invalid value; the message names it.",
    401: "The token or session is missing, invalid, revoked or expired.",
    403: "The role of the caller does not allow this, or a reviewer or a policy rejected the answer.",
    404: "The object does not exist, or the caller may not see it.",
    405: "The path does not support this method.",
    409: "The state of the object does not allow this, or its name is taken.",
    413: "The body is too large.",
    415: "The content coding of the body is not supported.",
    422: "The idempotency key was used with another request, or a function of a pipeline failed.",
    429: "A limit is reached; see `Retry-After`.",
    500: "The server, or the job, failed.",
    502: "The model failed.",
    503: "The server or the model is not available; see `Retry-After`.",
    504: "The model took too long, or the answer is still held or not there yet.",
}


def error_responses(path: str, statuses: Iterable[int]) -> dict[str, Schema]:
    """Return the responses of these statuses, and the one of all others, in the format of the API of `path`."""
    name, media_type = _format_of(path)
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    responses = {
        str(status): {"description": _MEANINGS.get(status, HTTPStatus(status).phrase), "content": content}
        for status in sorted(set(statuses))
    }
    return responses | {"default": {"description": "An error; its code says which.", "content": content}}


def _format_of(path: str) -> tuple[str, str]:
    """Return the name of the schema of errors, and their media type."""
    json = "application/json"
    if path in jobs.PATHS:
        return "JobsError", json
    if path in generate.PATHS or path.startswith(("/api/openai/", "/api/cache")):
        return "DetailError", json
    if path.startswith(("/get/", "/post/")):
        return "ContentError", json
    if path.startswith(("/v1/", "/v2/")):
        return ("AnthropicError" if is_anthropic(path) else "OpenAIError"), json
    return "Problem", PROBLEM
