"""Table of every route: the status that each caller gets for an object of another user.

The statuses are written here by hand, from what the documentation promises, and not derived from the code.
"""

from __future__ import annotations

from doors.hostile_pages import PAGES
from doors.hostile_row import CHAT, FORM, Row


def _library(kind: str, body: str, creation: str) -> list[Row]:
    """Return the rows of prompts, or of pipelines; `creation` has the statuses of a new one with this body."""
    path, item = f"/api/{kind}s", f"/api/{kind}s/<{kind}>"
    version = {"body": body, "label": None}
    return [
        Row(f"GET {path}", "200 200 200 200"),
        Row(f"POST {path}", creation, path, {"name": f"new_{kind}_of_<caller>", "body": body}),
        Row(f"GET {path}/{{name}}", "404 200 404 200", item),
        Row(f"GET {path}/{{name}}", "404 200 404 200", f"{item}?version=1"),
        Row(f"PUT {path}/{{name}}", "404 200 404 200", item, version),
        Row(f"PATCH {path}/{{name}}", "404 200 404 200", item, {"shared": False}),
        Row(f"DELETE {path}/{{name}}", "404 204 404 204", f"{path}/<spare_{kind}>?force=true"),
        Row(f"GET {path}/{{name}}/users", "404 200 404 200", f"{item}/users"),
        Row(f"GET {path}/{{name}}/versions", "404 200 404 200", f"{item}/versions"),
        Row(f"GET {path}/{{name}}/difference", "404 200 404 200", f"{item}/difference?from=1&to=1"),
        Row(f"PUT {path}/{{name}}/labels/{{label}}", "404 200 404 200", f"{item}/labels/test", {"version": 1}),
        Row(f"DELETE {path}/{{name}}/labels/{{label}}", "404 204 404 204", f"{item}/labels/old"),
    ]


_QUEUE = [
    Row("POST /enqueue", "200 200 200 200", body=CHAT),
    Row("POST /enqueue", "404 200 404 200", body=CHAT | {"model": "<prompt>"}),
    Row("GET /job", "404 200 200 200", "/job?id=<ended>"),
    Row("GET /job", "404 200 200 200", "/job?id=<held>"),
    Row("GET /jobs", "200 200 200 200"),
    Row("GET /jobs", "200 200 200 200", "/jobs?after=<first>&limit=1000"),
    # the role comes first: a plain user gets the same answer for every id
    Row("POST /reviewJob", "403 403 200 200", body={"id": "<held>", "status": "human"}),
    Row("POST /reviewJob", "403 403 200 200", body={"id": "<decided>", "status": "success"}),
    Row("POST /generate", "202 202 202 202", "/generate?wait=0", {"content": "hello"}),
    Row("POST /generate", "200 200 200 200", body={"content": "hello"}),
    Row("POST /chat_completion", "202 202 202 202", "/chat_completion?wait=0", {"messages": CHAT["messages"]}),
    Row("POST /chat_completion", "200 200 200 200", body={"messages": CHAT["messages"]}),
    Row("GET /check_status", "404 200 200 200", "/check_status?job_id=<ended>"),
    Row("POST /check_status", "404 200 200 200", "/check_status?job_id=<held>"),
    Row("GET /check_status", "404 200 404 404", "/check_status?job_id=<client_id>"),
]
_JOBS = [
    Row("GET /api/jobs", "200 200 200 200", "/api/jobs?limit=1000&total=1"),
    Row("GET /api/jobs", "200 200 200 200", "/api/jobs?status=human&limit=1000"),
    Row("POST /api/jobs", "202 202 202 202", body={"body": CHAT}),
    Row("POST /api/jobs", "404 202 404 202", body={"body": {"messages": CHAT["messages"]}, "target": "<prompt>"}),
    Row("GET /api/jobs/{job_id}", "404 200 200 200", "/api/jobs/<ended>"),
    Row("GET /api/jobs/{job_id}", "404 200 200 200", "/api/jobs/<ended>?wait=1"),
    Row("GET /api/jobs/{job_id}", "404 200 200 200", "/api/jobs/<held>"),
    Row("DELETE /api/jobs/{job_id}", "404 200 403 200", "/api/jobs/<late>"),
    Row("GET /api/jobs/{job_id}/events", "404 200 200 200", "/api/jobs/<ended>/events"),
    Row(
        "GET /api/jobs/{job_id}/events",
        "404 200 200 200",
        "/api/jobs/<ended>/events",
        None,
        {"accept": "text/event-stream"},
    ),
    Row("POST /api/jobs/{job_id}/retry", "404 202 403 202", "/api/jobs/<ended>/retry"),
    Row("GET /api/jobs/{job_id}/run", "404 200 200 200", "/api/jobs/<run>/run"),
    Row("POST /api/jobs/{job_id}/rerun", "404 202 403 202", "/api/jobs/<run>/rerun", {"node": "0"}),
    Row("POST /api/jobs/{job_id}/rerun", "404 202 403 202", "/api/jobs/<run>/rerun", {"node": "0", "output": "x"}),
    Row("GET /api/jobs/{job_id}/deliveries", "404 200 200 200", "/api/jobs/<ended>/deliveries"),
    Row("POST /api/deliveries/{delivery_id}/resend", "404 202 403 202", "/api/deliveries/<delivery>/resend"),
]
_REVIEWS = [
    Row("GET /api/reviews", "403 403 200 200"),
    # a queue that is not the reviewer's, and that is empty
    Row("POST /api/reviews/next", "403 403 403 204", body={"queue": "spare"}),
    Row("GET /api/reviews/stats", "403 403 200 200"),
    Row("GET /api/reviews/history", "403 403 200 200"),
    Row("GET /api/reviews/agreement", "403 403 200 200"),
    Row("POST /api/reviews/bulk", "403 403 201 201", body={"verdict": "approve"}),
    Row("POST /api/reviews/bulk/{bulk_id}/apply", "403 403 404 404", "/api/reviews/bulk/none/apply"),
    Row("POST /api/reviews/bulk/{bulk_id}/undo", "403 403 404 404", "/api/reviews/bulk/none/undo"),
    Row("GET /api/reviews/{job_id}", "403 403 200 200", "/api/reviews/<held>"),
    Row("POST /api/reviews/{job_id}/open", "403 403 200 200", "/api/reviews/<held>/open"),
    Row("POST /api/reviews/{job_id}/leave", "403 403 204 204", "/api/reviews/<held>/leave"),
    Row("POST /api/reviews/{job_id}/renew", "403 403 409 409", "/api/reviews/<ended>/renew"),
    Row("POST /api/reviews/{job_id}/draft", "403 403 409 409", "/api/reviews/<held>/draft", {"round": 9}),
    Row(
        "POST /api/reviews/{job_id}/decide",
        "403 403 409 409",
        "/api/reviews/<held>/decide",
        {"round": 9, "verdict": "approve"},
    ),
    Row("POST /api/reviews/{job_id}/undo", "403 403 409 409", "/api/reviews/<ended>/undo"),
    Row("POST /api/reviews/{job_id}/escalate", "403 403 409 409", "/api/reviews/<ended>/escalate", {"queue": "spare"}),
    Row("POST /api/reviews/{job_id}/assign", "403 403 409 409", "/api/reviews/<ended>/assign", {}),
    Row("GET /api/review-queues", "403 403 200 200"),
    Row("PUT /api/review-queues/{name}", "403 403 403 200", "/api/review-queues/new", {}),
    Row("DELETE /api/review-queues/{name}", "403 403 403 204", "/api/review-queues/gone"),
    Row("GET /api/review-reasons", "403 403 200 200"),
    Row("PUT /api/review-reasons", "403 403 403 200", body={"reasons": ["wrong"]}),
]
_ADMIN = [
    Row("GET /api/models", "403 403 403 200"),
    Row("POST /api/models", "403 403 403 201", body={"name": "new_of_<caller>", "kind": "echo"}),
    Row("GET /api/models/{name}", "403 403 403 200", "/api/models/echo"),
    Row("POST /api/models/{name}", "403 403 403 200", "/api/models/echo", CHAT),
    Row("POST /api/models/{name}", "403 403 403 400", "/api/models/echo?operation=stop"),
    Row("PATCH /api/models/{name}", "403 403 403 200", "/api/models/changed", {"cache": "never"}),
    Row("DELETE /api/models/{name}", "403 403 403 204", "/api/models/spare"),
    Row("POST /api/functions/sync", "403 403 403 200"),
    Row("GET /api/streams", "403 403 403 200"),
    Row(
        "POST /api/streams",
        "403 403 403 201",
        body={"name": "new", "url": "amqp://ann:pw@127.0.0.1:9/", "requests": "in", "responses": "out"},
    ),
    Row("GET /api/streams/{name}", "403 403 403 200", "/api/streams/stream"),
    Row("PATCH /api/streams/{name}", "403 403 403 200", "/api/streams/stream", {"max_handlers": 2}),
    Row("DELETE /api/streams/{name}", "403 403 403 204", "/api/streams/spare"),
    Row("GET /schema/asyncapi.json", "403 403 403 200"),
    Row("PUT /api/limits/{who}", "403 403 403 200", "/api/limits/each?model=changed", {"parallel": 1000}),
    Row("DELETE /api/limits/{who}", "403 403 403 204", "/api/limits/each?model=spare"),
    Row("GET /api/audit", "403 403 403 200"),
    Row("GET /metrics", "403 403 403 200"),
    Row("GET /api/receipts", "403 403 403 200"),
    Row("GET /api/receipts/head", "403 403 403 200"),
    Row("GET /api/receipts/key", "200 200 200 200"),
    Row("GET /api/reviews/feedback", "403 403 403 200"),
    Row("GET /api/reviews/figures", "403 403 403 200", "/api/reviews/figures?by=reviewer,day"),
    Row("GET /api/policies", "403 403 403 200"),
    Row("PUT /api/policies/{name}", "403 403 403 200", "/api/policies/new", {"target": "nosuch-<caller>"}),
    Row("GET /api/policies/{name}", "403 403 403 200", "/api/policies/policy"),
    Row("GET /api/policies/{name}/versions", "403 403 403 200", "/api/policies/policy/versions"),
    Row("POST /api/policies/{name}/dry-run", "403 403 403 200", "/api/policies/policy/dry-run", {"last": 10}),
    Row("POST /api/policies/{name}/recommendation", "403 403 403 409", "/api/policies/policy/recommendation", {}),
    Row("GET /api/policies/{name}/budget", "403 403 403 200", "/api/policies/policy/budget"),
    Row("POST /api/policies/{name}/budget/restart", "403 403 403 200", "/api/policies/policy/budget/restart"),
    Row("GET /api/policies/{name}/catch-rates", "403 403 403 200", "/api/policies/policy/catch-rates"),
    Row("GET /api/policies/{name}/planted", "403 403 403 200", "/api/policies/policy/planted"),
    Row(
        "POST /api/policies/{name}/planted",
        "403 403 403 201",
        "/api/policies/policy/planted",
        {"payload": CHAT, "response": {}},
    ),
    Row("DELETE /api/policies/{name}/planted/{item_id}", "403 403 403 404", "/api/policies/policy/planted/1000000"),
    Row("DELETE /api/policies/{name}", "403 403 403 204", "/api/policies/spare"),
    Row("PUT /api/prices", "403 403 403 200", body={"model": "changed", "input": "1", "output": "1"}),
    Row("DELETE /api/prices", "403 403 403 204", "/api/prices?model=spare&valid_from=2026-01-31"),
    Row("POST /api/users", "403 403 403 201", body={"email": "new@example.com", "role": "reviewer"}),
    Row("POST /api/users", "403 403 403 409", body={"email": "<email>"}),
    Row("PATCH /api/users/{user}", "403 403 403 200", "/api/users/<email>", {"active": True}),
    Row("PATCH /api/users/{user}", "403 403 403 200", "/api/users/<user>", {"active": True}),
    Row("DELETE /api/users/{user}", "403 403 403 400", "/api/users/<user>"),
    Row("DELETE /api/users/{user}", "403 403 403 404", "/api/users/999999?erase=true"),
]
_OWN = [
    Row("GET /api/keys", "200 200 200 200"),
    Row("POST /api/keys", "201 201 201 201", body={"name": "new", "key": "sk-new"}),
    Row("POST /api/keys", "403 403 403 201", body={"name": "new", "key": "sk-new", "shared": True}),
    Row("DELETE /api/keys/{key_id}", "404 204 404 204", "/api/keys/<key>"),
    Row("GET /api/users", "200 200 200 200"),
    Row("GET /api/tokens", "200 200 200 200"),
    Row("POST /api/tokens", "201 201 201 201", body={"name": "new"}),
    Row("POST /api/tokens", "403 201 403 201", body={"name": "new", "email": "<email>"}),
    Row("POST /api/tokens", "404 201 404 404", body={"name": "new", "key_id": "<own_key>"}),
    Row("DELETE /api/tokens/{token_id}", "404 204 404 204", "/api/tokens/<token>"),
    Row("GET /api/sessions", "200 200 200 200"),
    Row("DELETE /api/sessions/{session_id}", "404 204 404 204", "/api/sessions/<session>"),
    Row("DELETE /api/sessions", "404 200 404 200", "/api/sessions?user_id=<user>", is_last=True),
    Row("DELETE /api/sessions", "200 200 200 200", is_last=True),
    Row("GET /api/limits", "200 200 200 200"),
    Row("GET /api/limits/refusals", "200 200 200 200"),
    Row("GET /api/usage", "200 200 200 200", "/api/usage?by=user,token,target,prompt"),
    Row("GET /api/usage", "200 200 200 200", "/api/usage?by=user,target&format=csv"),
    Row("GET /api/prices", "200 200 200 200"),
    Row("GET /api/functions", "200 200 200 200"),
    Row("GET /api/pipeline/args", "404 200 404 200", "/api/pipeline/args?pipeline_name=<pipeline>"),
    Row("GET /api/pipeline/args", "404 200 404 200", "/api/pipeline/args?pipeline_id=<pipeline_id>"),
    Row(
        "POST /api/pipeline/call",
        "404 200 404 404",
        body={"pipeline_name": "<pipeline>", "args": {"x": "hi"}, "openaikey_id": "<own_key>"},
    ),
    Row("POST /api/pipeline/call", "404 200 404 200", body={"pipeline_id": "<pipeline_id>", "args": {"x": "hi"}}),
]
_UPSTREAM = [
    Row("GET /v1/models", "200 200 200 200"),
    Row("GET /v1/models/{name}", "200 200 200 200", "/v1/models/echo"),
    Row("GET /v1/models/{name}", "404 200 404 200", "/v1/models/<prompt>"),
    *(
        Row(f"POST /v1/{name}", "200 200 200 200", body=CHAT | {"input": "hello"})
        for name in ("chat/completions", "responses")
    ),
    *(
        Row(f"POST /v1/{name}", "200 200 200 200", body={"model": "echo", "prompt": "a", "input": "a"})
        for name in ("completions", "embeddings")
    ),
    Row("POST /v1/moderations", "200 200 200 200", body={"model": "mine", "input": "a"}),
    Row("POST /v1/rerank", "200 200 200 200", body={"model": "mine", "query": "a", "documents": ["b"]}),
    Row("POST /v2/rerank", "200 200 200 200", body={"model": "mine", "query": "a", "documents": ["b"]}),
    Row("POST /v1/messages", "200 200 200 200", body=CHAT | {"max_tokens": 9}),
    Row("POST /v1/messages/count_tokens", "200 200 200 200", body=CHAT),
    Row("POST /v1/edits", "200 200 200 200", body={"model": "mine", "instruction": "a"}),
    Row("POST /v1/chat/completions", "404 200 404 200", "/openai/v1/chat/completions", CHAT | {"model": "<prompt>"}),
    Row("POST /v1/chat/completions", "404 200 404 200", body=CHAT | {"model": "<pipeline>"}),
    Row(
        "POST /v1/responses",
        "404 200 404 200",
        body={"model": "mine", "input": "a", "previous_response_id": "<object>"},
    ),
    Row("POST /v1/{path}", "404 200 404 200", "/v1/responses/<object>/cancel"),
    Row("POST /v1/{path}", "403 403 403 200", "/v1/organization/invites?model=mine"),
    Row("GET /v1/{path}", "404 200 404 200", "/v1/responses/<object>"),
    Row("GET /v1/{path}", "404 200 404 200", "/openai/v1/responses/<object>/input_items"),
    Row("GET /v1/{path}", "403 403 403 200", "/v1/vector_stores?model=mine"),
    Row("GET /v1/{path}", "405 405 405 405", "/v1/responses?model=mine"),
    Row("PUT /v1/{path}", "404 200 404 200", "/v1/responses/<object>"),
    Row("PATCH /v1/{path}", "404 200 404 200", "/v1/responses/<object>"),
    Row("DELETE /v1/{path}", "404 200 404 200", "/v1/responses/<spare_object>"),
]
UPLOAD = (
    '--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    '--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n--b--\r\n'
)
_MESSAGES = {"requests": [{"custom_id": "a", "params": CHAT | {"max_tokens": 9}}]}
_BATCH = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
_BATCHES = [
    Row("GET /v1/files", "200 200 200 200"),
    Row("POST /v1/files", "200 200 200 200", body=UPLOAD, headers={"content-type": "multipart/form-data; boundary=b"}),
    Row("GET /v1/files/{file_id}", "404 200 404 200", "/v1/files/<file>"),
    Row("GET /v1/files/{file_id}", "404 200 404 200", "/openai/files/<file>?api-version=1"),
    Row("GET /v1/files/{file_id}/content", "404 200 404 200", "/v1/files/<file>/content"),
    Row("GET /v1/files/{file_id}/content", "404 200 404 200", "/openai/v1/files/<output>/content"),
    # the output of a batch of which an answer is held
    Row("GET /v1/files/{file_id}/content", "404 404 404 404", "/v1/files/file-<held_number>-output/content"),
    Row("DELETE /v1/files/{file_id}", "404 200 404 200", "/v1/files/<spare_file>"),
    Row("GET /v1/batches", "200 200 200 200"),
    # the input file is looked for once the batch is checked
    Row("POST /v1/batches", "200 200 200 200", body=_BATCH | {"input_file_id": "file-<caller>"}),
    Row("GET /v1/batches/{batch_id}", "404 200 404 200", "/v1/batches/<batch>"),
    Row("GET /v1/batches/{batch_id}", "404 200 404 200", "/v1/batches/batch_<held_number>"),
    Row("POST /v1/batches/{batch_id}/cancel", "404 409 404 409", "/v1/batches/<batch>/cancel"),
    Row("GET /v1/messages/batches", "200 200 200 200"),
    Row("POST /v1/messages/batches", "200 200 200 200", body=_MESSAGES),
    # each request of a batch at an upstream names a model of its own
    Row("POST /v1/messages/batches", "403 403 403 200", "/v1/messages/batches?model=mine", _MESSAGES),
    Row("GET /v1/messages/batches/{batch_id}", "404 200 404 200", "/v1/messages/batches/<messages>"),
    Row("GET /v1/messages/batches/{batch_id}/results", "404 200 404 200", "/v1/messages/batches/<messages>/results"),
    Row("POST /v1/messages/batches/{batch_id}/cancel", "404 200 404 200", "/v1/messages/batches/<messages>/cancel"),
    Row("DELETE /v1/messages/batches/{batch_id}", "404 200 404 200", "/v1/messages/batches/<spare_messages>"),
]
_PLAIN = [
    *(
        Row(
            f"{method} /{kind}/predict",
            "200 200 200 200",
            f"/{kind}/predict?id=echo",
            None if method == "GET" else CHAT,
        )
        for method in ("GET", "POST")
        for kind in ("get", "post")
    ),
    Row("POST /post/predict", "404 200 404 200", "/post/predict?id=<prompt>", CHAT),
    Row("GET /get/getlogs", "403 403 200 200", "/get/getlogs?id=echo"),
    Row("POST /post/getlogs", "403 403 200 200", "/post/getlogs?id=echo"),
    Row("GET /get/cleanlogs", "403 403 403 200", "/get/cleanlogs?id=echo"),
    Row(
        "POST /post/addmodel", "403 403 403 200", "/post/addmodel?id=added_of_<caller>&type=httpmodel&dest=127.0.0.1:9"
    ),
    Row("GET /get/addmodel", "403 403 403 200", "/get/addmodel?id=command_of_<caller>&type=subprocessmodel&dest=true"),
    Row("GET /api/cache", "200 200 200 200"),
    Row("GET /api/cache", "403 200 403 200", "/api/cache?user=<email>"),
    Row("DELETE /api/cache", "403 200 403 200", "/api/cache?user=<email>", is_last=True),
    Row("DELETE /api/cache", "200 200 200 200", is_last=True),
    Row("POST /api/cache/{endpoint}", "200 200 200 200", "/api/cache/v1/chat/completions", CHAT),
    Row("POST /api/openai/{endpoint}", "200 200 200 200", "/api/openai/v1/chat/completions", CHAT),
    Row(
        "POST /api/openai/{endpoint}",
        "404 200 404 200",
        "/api/openai/v1/chat/completions",
        CHAT | {"model": "<prompt>"},
    ),
    # a reviewer may decide, but not on an answer that the page did not show
    Row("POST /dashboard/decide", "403 403 409 409", body="id=<held>&verdict=approve&round=0&seen=x", headers=FORM),
]
_FOR_ANYBODY = [
    # callers with a token are led to the first page of their role
    Row("GET /", "public 200/303"),
    Row("GET /static/{file}", "public 200", "/static/tokens.css"),
    Row("GET /dashboard/sign-in", "public 200"),
    Row("GET /schema/openapi.json", "public 200"),
    Row("GET /liveness", "public 200"),
    Row("GET /health/live", "public 200"),
    # 503 once the administrator has added a stream whose broker is unreachable
    Row("GET /health/ready", "public 200/503"),
    Row("POST /api/session", "public 400", body={}),
    Row("GET /signin/{code}", "public 401", "/signin/guess"),
    # no provider is set
    Row("GET /signin/oidc", "public 404"),
    Row("GET /signin/oidc/callback", "public 404"),
    Row("GET /signin/oidc/sign-out", "public 404"),
    Row("POST /dashboard/sign-out", "public 303", body="", headers=FORM),
    Row("DELETE /api/session", "200 200 200 200"),
]
TABLE = [
    *_QUEUE,
    *_JOBS,
    *_REVIEWS,
    *_ADMIN,
    *_OWN,
    *_library("prompt", "hello {x}", "201 201 201 201"),
    # nobody else may call the owner's prompt
    *_library("pipeline", "<prompt>(x)", "400 201 400 201"),
    *_UPSTREAM,
    *_BATCHES,
    *_PLAIN,
    *PAGES,
    *_FOR_ANYBODY,
]
# Routes that need the role first, so that a plain user learns nothing of the object: 403 for every id.
ROLE_FIRST = {
    *("POST /reviewJob", "POST /api/users", "PATCH /api/users/{user}", "DELETE /api/users/{user}"),
    *(row.route for row in _REVIEWS),
    *(row.route for row in PAGES if row.route.partition(" ")[2].startswith("/dashboard/review/{job_id}")),
    "POST /dashboard/decide",
    *("POST /dashboard/people/users", "POST /dashboard/people/users/{user_id}"),
    *("POST /dashboard/people/users/{user_id}/link", "GET /dashboard/people/users/{user_id}"),
    "POST /dashboard/people/users/{user_id}/erase",
    "POST /dashboard/people/users/{user_id}/sessions/end",
    "POST /dashboard/people/users/{user_id}/sessions/{session_id}/end",
}
# Requests whose object the upstream knows or does not know, if nobody made it through Signoff.
UPSTREAM_DECIDES = {"POST /v1/responses"}
# Names of persons, which a refusal may repeat: an address of another user is a 403, whether there is one or not.
PERSONS_FIRST = {"POST /api/tokens", "POST /dashboard/people/tokens", "GET /api/cache", "DELETE /api/cache"}
