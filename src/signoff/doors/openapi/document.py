"""The OpenAPI document: Litestar's document, completed with bodies and answers, and the routes in plain ASGI."""

from typing import Any, cast

from signoff.doors.callers import SECURE_SESSION_COOKIE, SESSION_COOKIE
from signoff.doors.openapi.errors import FORMATS, error_responses
from signoff.doors.openapi.operations import OPERATIONS, PARAMETERS, Operation
from signoff.doors.openapi.plain import PLAIN, AsgiOperation
from signoff.doors.openapi.schemas import schemas_of

Schema = dict[str, Any]
JSON = "application/json"
DESCRIPTION = """\
One server in front of every AI model; an answer leaves only when it is signed off.

The routes below `/v1` are also at `/openai/v1`, and for Azure's clients at `/openai/deployments/{model}`.
A trailing slash is optional. Each response has the header `x-request-id`.
"""
TAGS = {
    "openai": "Models, in the form of OpenAI's API.",
    "anthropic": "Models, in the form of Anthropic's API.",
    "files": "Files, in the form of OpenAI's API.",
    "batches": "Files of requests that are answered in the background.",
    "cache": "Cached answers.",
    "jobs": "Jobs: requests that are answered later.",
    "review": "The job API with review.",
    "reviews": "The review desk.",
    "queue": "The API of the queue.",
    "models": "Registered models, and their upstream keys.",
    "prompts": "Prompts in numbered versions.",
    "pipelines": "Pipelines in numbered versions.",
    "functions": "Functions that pipelines call.",
    "policies": "Review policies, error budgets and planted items.",
    "receipts": "Signed records of decisions.",
    "limits": "Limits in requests, tokens and dollars.",
    "usage": "Usage, latencies and prices.",
    "people": "Users, tokens and sessions.",
    "session": "Signing in and out.",
    "streams": "Topics of message brokers.",
    "deliveries": "Messages about the ends of jobs.",
    "audit": "The audit log.",
    "health": "Probes.",
}
SECURITY_SCHEMES: Schema = {
    "token": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
    "session": {"type": "apiKey", "in": "cookie", "name": SESSION_COOKIE},
    "session-https": {"type": "apiKey", "in": "cookie", "name": SECURE_SESSION_COOKIE},
}


def complete(document: Schema) -> Schema:
    """Return Litestar's document with all bodies, answers and errors, and with the routes in plain ASGI."""
    table = _types()
    schemas, components = schemas_of([of for _, of in table])
    names = {key: schema for (key, _), schema in zip(table, schemas, strict=True)}
    paths = dict[str, Schema]()
    for path, item in cast("dict[str, Schema]", document["paths"]).items():
        paths[path] = {method: _completed(path, method, operation, names) for method, operation in item.items()}
    for route, plain in PLAIN.items():
        method, _, path = route.partition(" ")
        paths.setdefault(path, {})[method.lower()] = _described(route, plain, names)
    info = document["info"] | {
        "description": DESCRIPTION,
        "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
    }
    return {
        "openapi": document["openapi"],
        "info": info,
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "security": [{name: []} for name in SECURITY_SCHEMES],
        "paths": {path: paths[path] for path in sorted(paths)},
        "components": {"schemas": components | FORMATS, "securitySchemes": SECURITY_SCHEMES},
    }


def _types() -> list[tuple[tuple[str, str], Any]]:
    """Return the types of all answers and bodies, each with its route and its part, such as `body`."""
    rows = list[tuple[tuple[str, str], Any]]()
    for route, operation in (*OPERATIONS.items(), *PLAIN.items()):
        parts = {"answer": operation.answer, "body": operation.body}
        if isinstance(operation, Operation):
            parts |= {"other": operation.other_answer, "accepted": operation.accepted}
            parts |= {"unavailable": operation.unavailable}
        rows += [((route, part), of) for part, of in parts.items() if of is not None and not isinstance(of, dict)]
    return rows


def _completed(path: str, method: str, operation: Schema, names: dict[tuple[str, str], Schema]) -> Schema:
    """Return an operation of Litestar with its body, answers and errors."""
    route = f"{method.upper()} {path}"
    more = OPERATIONS.get(route, Operation())
    responses = {status: response for status, response in operation["responses"].items() if status < "400"}
    if (answer := names.get((route, "answer"))) is not None:
        success = min(responses)
        answer = answer if more.other_answer is None else {"anyOf": [answer, names[route, "other"]]}
        others = {each: {"schema": {"type": "string"}} for each in more.other_types}
        responses[success] = responses[success] | {"content": {JSON: {"schema": answer}} | others}
    if more.accepted is not None:
        content = {JSON: {"schema": names[route, "accepted"]}}
        responses["202"] = {"description": "Accepted; ask for the result later.", "content": content}
    if more.redirects:
        responses = {} if more.answer is None else responses
        responses["303"] = {"description": "Redirect of a browser to a page."}
    parameters = [_with_description(each) for each in operation.get("parameters", [])]
    responses |= _errors(path, more, parameters)
    if more.unavailable is not None:
        content = {JSON: {"schema": names[route, "unavailable"]}}
        responses["503"] = {"description": "Not ready; the body says what is missing.", "content": content}
    completed = operation | {"parameters": parameters, "responses": responses}
    if more.body is not None:
        body = {"content": {JSON: {"schema": names[route, "body"]}}, "required": more.needs_body}
        completed |= {"requestBody": body}
    return completed | ({"security": []} if more.is_public else {})


def _with_description(parameter: Schema) -> Schema:
    """Return a parameter with its description, and without the type null, which no query can have."""
    schema = dict(parameter["schema"])
    kinds: list[Schema] = [kind for kind in schema.pop("oneOf", []) if kind != {"type": "null"}]
    description = PARAMETERS.get(parameter["name"])
    described: Schema = {} if description is None else {"description": description}
    one_kind: Schema = kinds[0] if len(kinds) == 1 else {}
    return parameter | {"schema": schema | one_kind} | described


def _errors(path: str, operation: Operation, parameters: list[Schema]) -> Schema:
    """Return the errors that the table names, and those that follow from the parameters and the body."""
    places = {each["in"] for each in parameters}
    statuses = [*operation.errors, *([] if operation.is_public else [401])]
    statuses += [400] if "query" in places or operation.body is not None else []
    statuses += [404] if "path" in places else []
    statuses += [413, 415] if operation.body is not None else []
    return error_responses(path, statuses)


def _described(route: str, plain: AsgiOperation, names: dict[tuple[str, str], Schema]) -> Schema:
    """Return an operation of a route in plain ASGI."""
    method, _, path = route.partition(" ")
    first, *others = plain.answer_types
    answer = names.get((route, "answer"), plain.answer or {})
    content = {first: {"schema": answer}} | {each: {"schema": {"type": "string"}} for each in others}
    operation: Schema = {
        "tags": [plain.tag],
        "summary": plain.summary,
        "operationId": _operation_id(method, path),
        "parameters": list(plain.parameters),
        "responses": {"200": {"description": "The answer.", "content": content}} | error_responses(path, plain.errors),
    }
    if plain.body is not None:
        body = names.get((route, "body"), plain.body)
        operation["requestBody"] = {"content": {plain.body_type: {"schema": body}}, "required": True}
    reference = {} if plain.reference is None else {"externalDocs": {"url": plain.reference}}
    return operation | reference


def _operation_id(method: str, path: str) -> str:
    """Return an identifier of the route, in the form of Litestar's."""
    words = path.replace("{", "").replace("}", "").replace("_", "/").split("/")
    return "".join(word.capitalize() for word in (*words, method.lower()) if word)
