"""Comparison of responses with the OpenAPI document: status, media type, and every member of the body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any
from urllib.parse import quote

import jsonschema_rs

from doors.hostile_row import Row

# Pages, static files, and what a page alone sends.
UNDESCRIBED = ("/dashboard", "/static", "/schema/openapi.json", "/signin/oidc")
ROOT = "GET /"
DOCUMENT = "urn:document"


class DescribedResponses:
    """The responses that the OpenAPI document describes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._paths = document["paths"]
        # A validator that had the schemas of the whole document in its own would take ten times as long to make.
        self._registry = jsonschema_rs.Registry([(DOCUMENT, exact(document))], draft=jsonschema_rs.Draft202012)
        self._validator = cache(self._make_validator)
        self.seen = 0
        """Number of responses whose body was compared."""

    def faults_of(self, sent: Sequence[tuple[Row, int, str]]) -> Iterator[str]:
        """Yield a line for each response that is not as the document says."""
        for row, status, text in sent:
            method, _, path = row.route.partition(" ")
            if row.route != ROOT and not path.startswith(UNDESCRIBED):
                head, _, body = text.partition("\n\n")
                if (fault := self._fault(method, self.path_of(row), status, (head, body))) is not None:
                    yield f"{row.route} {row.path} {status}: {fault}"

    def path_of(self, row: Row) -> str:
        """Return the path under which the document has the route of a row."""
        path = row.route.partition(" ")[2]
        if path in self._paths:
            return path
        for prefix in ("/get/", "/post/"):
            if path.startswith(prefix):
                return f"{prefix}{{operation}}"
        return row.path.partition("?")[0]

    def _fault(self, method: str, path: str, status: int, response: tuple[str, str]) -> str | None:
        operation = self._paths.get(path, {}).get(method.lower())
        if operation is None:
            return "is not in the document"
        if str(status) not in operation["responses"]:
            return None if 300 <= status < 400 else f"is not among {sorted(operation['responses'])}"
        return self._fault_of_body((method, path, str(status)), operation["responses"][str(status)], *response)

    def _fault_of_body(
        self, place: tuple[str, str, str], described: dict[str, Any], head: str, body: str
    ) -> str | None:
        content = described.get("content")
        if not content:
            return f"has a body: {body[:100]}" if body else None
        match = re.search(r"^content-type: ([^;\s]+)", head, re.MULTILINE | re.IGNORECASE)
        media_type = "" if match is None else match[1]
        if media_type not in content:
            return f"is {media_type!r}, not one of {[*content]}"
        if media_type in {"application/json", "application/problem+json"}:
            self.seen += 1
            error = next(self._validator(*place, media_type).iter_errors(json.loads(body)), None)
            return error and f"{error.message[:300]} at {error.instance_path}"
        return None

    def _make_validator(self, method: str, path: str, status: str, media_type: str) -> Any:
        steps = ("paths", path, method.lower(), "responses", status, "content", media_type, "schema")
        pointer = "/".join(step.replace("~", "~0").replace("/", "~1") for step in steps)
        reference = {"$ref": f"{DOCUMENT}#/{quote(pointer, safe='/~')}"}
        return jsonschema_rs.Draft202012Validator(reference, registry=self._registry)


def exact(schema: Any) -> Any:
    """Return a schema in which objects have no members beside those that it names, unless it names none.

    Members that OpenAI's and Anthropic's answers have besides those that are described stay allowed: the schemas of
    these name no property of their own.
    """
    if isinstance(schema, list):
        return [exact(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: exact(value) for name, value in schema.items()}
    is_closed = isinstance(schema.get("properties"), dict) and schema.get("title") is not None
    return inner | ({"additionalProperties": False} if is_closed else {})
