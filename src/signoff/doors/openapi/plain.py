"""Operations of the routes in plain ASGI, which no framework describes: OpenAI's and Anthropic's APIs, the cached
answers, and the API of models by id.

OpenAI and Anthropic define the bodies and answers of their APIs; the document names the members that Signoff needs, and
allows any others.
"""

from typing import Any, NamedTuple

from signoff.core.api_paths import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EDITS,
    EMBEDDINGS,
    KNOWN,
    MESSAGES,
    MODERATIONS,
    RERANK,
    RESPONSES,
    STREAMED,
)
from signoff.core.cache import CacheSize
from signoff.doors.openai.batches import NewBatch
from signoff.doors.openai.door import COHERE_RERANK
from signoff.doors.openai.message_requests import NewMessageBatch
from signoff.doors.openapi.answers import compatible, jobs

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_OPENAI, _ANTHROPIC = "https://developers.openai.com/api/reference", "https://platform.claude.com/docs/en/api"
# Statuses of errors of routes that ask a model.
_OF_MODELS = (400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504)


class AsgiOperation(NamedTuple):
    """Operation of a route in plain ASGI."""

    summary: str
    """Summary in a few words."""
    tag: str
    """Name in `TAGS` of `document`."""
    answer: Any = None
    """Type, or schema, of the answer; None for any JSON."""
    body: Any = None
    """Type, or schema, of the body; None for no body."""
    parameters: tuple[Schema, ...] = ()
    """Parameters of the path, the query and the head."""
    errors: tuple[int, ...] = (401,)
    """Statuses of errors."""
    answer_types: tuple[str, ...] = ("application/json",)
    """Media types of the answer; the first one has the schema."""
    body_type: str = "application/json"
    """Media type of the body."""
    reference: str | None = None
    """Address of the reference of the API that this route speaks."""


def _object(description: str, **members: Schema) -> Schema:
    """Return the schema of an object with these members, all required, and any others."""
    return {"description": description, "type": "object", "required": [*members], "properties": members}


def _query(name: str, description: str, schema: Schema = _TEXT, *, required: bool = False) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema, "required": required}


def _header(name: str, description: str, schema: Schema = _TEXT) -> Schema:
    return {"name": name, "in": "header", "description": description, "schema": schema, "required": False}


def _path(name: str, description: str, **schema: Any) -> Schema:
    return {"name": name, "in": "path", "description": description, "schema": _TEXT | schema, "required": True}


_MODEL: Schema = {"type": "string", "description": "Name of a model, prompt or pipeline; left out: the default model."}
_STREAM: Schema = {"type": "boolean", "description": "True for a stream of server-sent events."}
_LIST: Schema = {"type": "array", "items": {}}
_CALL_HEADERS = (
    _header("Idempotency-Key", "Key with which equal requests of a user are one job."),
    _header("Prefer", "`wait=N`: seconds to wait for the review of a held answer."),
    _header("Cache-Control", "Use of the response cache: `no-store`, `no-cache` or `max-age=N`."),
)
# Members that a body must have, members of an answer, and the reference, by path.
_PATHS: dict[str, tuple[str, dict[str, Schema], dict[str, Schema], str]] = {
    CHAT: ("Create a chat completion", {"messages": _LIST}, {"choices": _LIST}, _OPENAI),
    COMPLETIONS: ("Create a completion", {"prompt": {}}, {"choices": _LIST}, _OPENAI),
    RESPONSES: ("Create a response", {"input": {}}, {"id": _TEXT, "output": _LIST}, _OPENAI),
    EMBEDDINGS: ("Create embeddings", {"input": {}}, {"data": _LIST}, _OPENAI),
    MODERATIONS: ("Classify a text", {"input": {}}, {}, _OPENAI),
    RERANK: ("Rank documents", {"query": {}, "documents": _LIST}, {}, _OPENAI),
    EDITS: ("Edit a text", {}, {}, _OPENAI),
    MESSAGES: (
        "Create a message",
        {"messages": _LIST, "max_tokens": {"type": "integer"}},
        {"id": _TEXT, "content": _LIST},
        _ANTHROPIC,
    ),
    COUNT_TOKENS: (
        "Count the tokens of a message",
        {"messages": _LIST},
        {"input_tokens": {"type": "integer"}},
        _ANTHROPIC,
    ),
}


def _body(path: str) -> Schema:
    _, required, _, _ = _PATHS[path]
    schema = _object("Request, with all other parameters of its API.", **required)
    stream = {"stream": _STREAM} if path in STREAMED else {}
    return schema | {"properties": {"model": _MODEL} | required | stream}


def _inference(path: str) -> AsgiOperation:
    summary, _, members, reference = _PATHS[path]
    return AsgiOperation(
        summary,
        "anthropic" if path in {MESSAGES, COUNT_TOKENS} else "openai",
        _object("Answer of the model, in the form of its API.", **members),
        _body(path),
        _CALL_HEADERS,
        _OF_MODELS,
        ("application/json", *(["text/event-stream"] if path in STREAMED else [])),
        reference=reference,
    )


def _passed(method: str) -> AsgiOperation:
    takes_body = method in {"POST", "PUT", "PATCH"}
    return AsgiOperation(
        "Pass a request through to a model",
        "openai",
        {},
        {} if takes_body else None,
        (
            _path("path", "One or more segments; the first one determines which role may call it."),
            _query("model", "Model that the request goes to, if the body names none; not passed on."),
            _header("x-signoff-model", "The same; it takes precedence over the query."),
        ),
        (*_OF_MODELS[:3], 404, 405, *_OF_MODELS[4:]),
        ("application/json", "*/*"),
        reference=_OPENAI,
    )


_LIMIT = _query("limit", "Maximum number of objects of the page.", {"type": "integer", "minimum": 1})
_AFTER = _query("after", "Id of the last object of the previous page.")
_FILE, _BATCH = _path("file_id", "Id of the file."), _path("batch_id", "Id of the batch.")
_UPLOAD = _object("Form of an upload.", file={"type": "string", "format": "binary"}, purpose=_TEXT) | {
    "required": ["file", "purpose"]
}
_FILES = {
    "POST /v1/files": AsgiOperation(
        "Upload a file",
        "files",
        compatible.OpenAIFile,
        _UPLOAD,
        (),
        (400, 401, 413, 415, 503),
        body_type="multipart/form-data",
    ),
    "GET /v1/files": AsgiOperation(
        "List files",
        "files",
        compatible.OpenAIPage[compatible.OpenAIFile],
        None,
        (_query("purpose", "Purpose of the files."), _query("order", "`asc` or `desc`, by age."), _AFTER, _LIMIT),
        (400, 401),
    ),
    "GET /v1/files/{file_id}": AsgiOperation("Get a file", "files", compatible.OpenAIFile, None, (_FILE,), (401, 404)),
    "GET /v1/files/{file_id}/content": AsgiOperation(
        "Get the contents of a file",
        "files",
        {"type": "string", "format": "binary"},
        None,
        (_FILE,),
        (401, 404, 500, 503),
        ("application/octet-stream",),
    ),
    "DELETE /v1/files/{file_id}": AsgiOperation(
        "Delete a file", "files", compatible.FileRemoval, None, (_FILE,), (401, 404)
    ),
    "POST /v1/batches": AsgiOperation(
        "Create a batch",
        "batches",
        compatible.OpenAIBatch,
        NewBatch,
        (_CALL_HEADERS[0],),
        (400, 401, 413, 415, 422, 429),
    ),
    "GET /v1/batches": AsgiOperation(
        "List batches",
        "batches",
        compatible.OpenAIPage[compatible.OpenAIBatch],
        None,
        (_AFTER, _LIMIT),
        (400, 401),
    ),
    "GET /v1/batches/{batch_id}": AsgiOperation(
        "Get a batch", "batches", compatible.OpenAIBatch, None, (_BATCH,), (401, 404)
    ),
    "POST /v1/batches/{batch_id}/cancel": AsgiOperation(
        "Cancel a batch", "batches", compatible.OpenAIBatch, None, (_BATCH,), (401, 404, 409)
    ),
    "POST /v1/messages/batches": AsgiOperation(
        "Create a batch of messages",
        "anthropic",
        {"description": "The batch; if it is sent to an upstream, the answer of the upstream."},
        NewMessageBatch,
        (_CALL_HEADERS[0], _query("model", "Model whose upstream gets the batch, instead of this server.")),
        (400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
        reference=_ANTHROPIC,
    ),
    "GET /v1/messages/batches": AsgiOperation(
        "List batches of messages",
        "anthropic",
        compatible.MessageBatchPage,
        None,
        (
            _query("after_id", "Id of the last batch of the previous page."),
            _query("before_id", "Id of the first batch of the next page."),
            _LIMIT,
        ),
        (400, 401),
        reference=_ANTHROPIC,
    ),
    "GET /v1/messages/batches/{batch_id}": AsgiOperation(
        "Get a batch of messages", "anthropic", compatible.MessageBatch, None, (_BATCH,), (401, 404)
    ),
    "DELETE /v1/messages/batches/{batch_id}": AsgiOperation(
        "Delete a batch of messages", "anthropic", compatible.MessageBatchRemoval, None, (_BATCH,), (400, 401, 404)
    ),
    "POST /v1/messages/batches/{batch_id}/cancel": AsgiOperation(
        "Cancel a batch of messages", "anthropic", compatible.MessageBatch, None, (_BATCH,), (401, 404)
    ),
    "GET /v1/messages/batches/{batch_id}/results": AsgiOperation(
        "Get the results of a batch of messages",
        "anthropic",
        {"type": "string", "format": "binary"},
        None,
        (_BATCH,),
        (401, 404, 500, 503),
        ("application/x-jsonl",),
    ),
}
_CACHE_FILTERS = (
    _query("key", "A job's `cache_key`."),
    _query("user", "E-mail address of a user, for admins."),
    _query("model", "Name of the model that answered."),
    _query("target", "Name that requests gave."),
)
_CACHED = {
    f"POST /api/{door}{path}": AsgiOperation(
        f"{_PATHS[path][0]}, {'from the cache or a model' if door == 'openai' else 'from the cache alone'}",
        "cache",
        jobs.CachedResponse if door == "openai" else list[jobs.CachedResponse],
        _body(path),
        _CALL_HEADERS if door == "openai" else (),
        _OF_MODELS if door == "openai" else (400, 401, 404, 413, 415),
    )
    for door in ("openai", "cache")
    for path in sorted(KNOWN)
}
_OPERATION = _path("operation", "What to do with the model.", enum=["predict", "getlogs", "cleanlogs", "addmodel"])
_BY_ID = {
    f"{method} /{prefix}/{{operation}}": AsgiOperation(
        "Call a model by id, add one, or read or clear its log",
        "models",
        {},
        {} if method == "POST" else None,
        (
            _OPERATION,
            _query("id", "Name of the model.", required=True),
            _query("type", "For `addmodel`: `httpmodel` or `subprocessmodel`."),
            _query("dest", "For `addmodel`: URL or command line."),
        ),
        _OF_MODELS,
        ("application/json", "*/*"),
    )
    for prefix in ("get", "post")
    for method in ("GET", "POST")
}
PLAIN: dict[str, AsgiOperation] = {
    **{f"POST {path}": _inference(path) for path in _PATHS},
    f"POST {COHERE_RERANK}": _inference(RERANK),
    "GET /v1/models": AsgiOperation("List models that requests can name", "openai", compatible.OpenAIModels),
    "GET /v1/models/{name}": AsgiOperation(
        "Get a model that requests can name",
        "openai",
        compatible.OpenAIModel,
        None,
        (_path("name", "Name of the model, prompt or pipeline."),),
        (401, 404),
    ),
    **{f"{method} /v1/{{path}}": _passed(method) for method in ("GET", "POST", "PUT", "PATCH", "DELETE")},
    **_FILES,
    **_CACHED,
    "GET /api/cache": AsgiOperation(
        "Get the size of the cache", "cache", CacheSize, None, _CACHE_FILTERS, (400, 401, 403, 404, 503)
    ),
    "DELETE /api/cache": AsgiOperation(
        "Delete answers from the cache", "cache", jobs.CacheRemoval, None, _CACHE_FILTERS, (400, 401, 403, 404, 503)
    ),
    **_BY_ID,
}
"""Operations by method and path."""
