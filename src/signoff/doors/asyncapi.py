"""The topics of streams as an AsyncAPI 3 document.

Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from collections.abc import Sequence
from typing import Any

from signoff import __version__
from signoff.core.stream import Stream

PROTOCOLS = {"rediss": "redis", "mqtts": "secure-mqtt"}
ANYTHING = ["object", "array", "string", "number", "boolean", "null"]
REQUEST = {
    "type": "object",
    "required": ["body"],
    "properties": {
        "path": {"type": ["string", "null"], "default": "/v1/completions", "examples": ["/v1/chat/completions"]},
        "metadata": {"type": ANYTHING, "description": "Returned unchanged with the answer."},
        "body": {"type": "object", "description": "The body of the request, as in OpenAI's API."},
    },
}
RESPONSE = {
    "type": "object",
    "required": ["status_code", "metadata", "body"],
    "properties": {
        "status_code": {"type": "integer", "description": "200, or the status of the error."},
        "metadata": {"type": ANYTHING},
        "body": {"type": ANYTHING, "description": 'The answer, or {"error": {"message", "type", "param", "code"}}.'},
    },
}
MESSAGES = {
    "request": {
        "name": "request",
        "contentType": "application/json",
        "payload": REQUEST,
        "examples": [
            {
                "payload": {
                    "path": "/v1/completions",
                    "metadata": {"key": "val"},
                    "body": {"model": "my-model", "prompt": "whats your favorite color?"},
                }
            }
        ],
    },
    "response": {"name": "response", "contentType": "application/json", "payload": RESPONSE},
}


def document(streams: Sequence[Stream]) -> dict[str, Any]:
    """Return the AsyncAPI document of the topics of `streams`, on which requests arrive and responses are published."""
    doc: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": "Signoff", "version": __version__, "description": "Requests in, answers out."},
        "defaultContentType": "application/json",
        "servers": {_key(stream): _server(stream) for stream in streams},
        "channels": {},
        "operations": {},
        "components": {"messages": MESSAGES},
    }
    for stream in streams:
        for kind, topic in (("request", stream.requests), ("response", stream.responses)):
            name = f"{_key(stream)}_{kind}s"
            doc["channels"][name] = {
                "address": topic,
                "servers": [{"$ref": f"#/servers/{_key(stream)}"}],
                "messages": {kind: {"$ref": f"#/components/messages/{kind}"}},
            }
        doc["operations"][f"{_key(stream)}_answer"] = _operation(_key(stream))
    return doc


def _key(stream: Stream) -> str:
    """Return the name of the stream as a key of its own, which must not contain a dot."""
    return stream.name.replace("_", "__").replace(".", "_dot_")


def _server(stream: Stream) -> dict[str, str]:
    return {"host": stream.host, "protocol": PROTOCOLS.get(stream.scheme, stream.scheme)}


def _operation(key: str) -> dict[str, Any]:
    channels = "#/channels/" + key
    return {
        "action": "receive",
        "channel": {"$ref": f"{channels}_requests"},
        "messages": [{"$ref": f"{channels}_requests/messages/request"}],
        "reply": {
            "channel": {"$ref": f"{channels}_responses"},
            "messages": [{"$ref": f"{channels}_responses/messages/response"}],
        },
    }
