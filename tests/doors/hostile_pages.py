"""Pages of the table of every route."""

from __future__ import annotations

from doors.hostile_row import FORM, Row

FIRST = "version=1"
PAGES = [
    Row("GET /dashboard/review", "403 403 200 200"),
    Row("GET /dashboard/review/bulk", "403 403 200 200"),
    Row("POST /dashboard/review/bulk", "403 403 303 303", body="verdict=approve&target=none", headers=FORM),
    Row("GET /dashboard/review/bulk/{bulk_id}", "403 403 404 404", "/dashboard/review/bulk/none"),
    Row(
        "POST /dashboard/review/bulk/{bulk_id}/apply", "403 403 404 404", "/dashboard/review/bulk/none/apply", "", FORM
    ),
    Row("POST /dashboard/review/bulk/{bulk_id}/undo", "403 403 404 404", "/dashboard/review/bulk/none/undo", "", FORM),
    Row("GET /dashboard/review/{job_id}", "403 403 200 200", "/dashboard/review/<held>"),
    Row("POST /dashboard/review/next", "403 403 303 303", body="", headers=FORM),
    Row("GET /dashboard/review/queue", "403 403 200 200", "/dashboard/review/queue"),
    Row("GET /dashboard/review/{job_id}/media/{number}", "403 403 404 404", "/dashboard/review/<held>/media/0"),
    Row("POST /dashboard/review/{job_id}/open", "403 403 303 303", "/dashboard/review/<held>/open", "", FORM),
    Row("POST /dashboard/review/{job_id}/leave", "403 403 303 303", "/dashboard/review/<held>/leave", "", FORM),
    Row("POST /dashboard/review/{job_id}/skip", "403 403 303 303", "/dashboard/review/<held>/skip", "", FORM),
    Row("POST /dashboard/review/{job_id}/draft", "403 403 400 400", "/dashboard/review/<held>/draft", "", FORM),
    Row("POST /dashboard/review/{job_id}/undo", "403 403 409 409", "/dashboard/review/<held>/undo", "", FORM),
    Row("GET /dashboard/batches", "200 200 200 200"),
    Row("GET /dashboard/batches/live", "200 200 200 200"),
    Row("POST /dashboard/batches", "400 400 400 400", body="endpoint=x", headers=FORM),
    Row("GET /dashboard/batches/{batch_id}", "404 200 404 200", "/dashboard/batches/<batch>"),
    Row("GET /dashboard/batches/{batch_id}/live", "404 200 404 200", "/dashboard/batches/<batch>/live"),
    Row("POST /dashboard/batches/{batch_id}/cancel", "404 303 404 303", "/dashboard/batches/<batch>/cancel", "", FORM),
    Row("GET /dashboard/jobs", "200 200 200 200"),
    Row("POST /dashboard/jobs/views", "303 303 303 303", body="name=mine&query=status%3Dhuman", headers=FORM),
    Row("GET /dashboard/jobs/{job_id}", "404 200 200 200", "/dashboard/jobs/<ended>"),
    Row("POST /dashboard/jobs/{job_id}/cancel", "404 409 403 409", "/dashboard/jobs/<ended>/cancel", "", FORM),
    Row("POST /dashboard/jobs/{job_id}/repeat", "404 303 403 303", "/dashboard/jobs/<ended>/repeat", "", FORM),
    Row("GET /api/usage/latencies", "200 200 200 200", "/api/usage/latencies?by=model"),
    Row("GET /dashboard/usage", "200 200 200 200"),
    *(
        row
        for kind in ("prompt", "pipeline")
        for path in (f"/dashboard/{kind}s/<{kind}>",)
        for row in (
            Row(f"GET /dashboard/{kind}s", "200 200 200 200"),
            Row(f"POST /dashboard/{kind}s", "400 400 400 400", body="name=&body=x", headers=FORM),
            Row(f"GET /dashboard/{kind}s/{{name}}", "404 200 404 200", path),
            Row(f"POST /dashboard/{kind}s/{{name}}", "404 400 404 400", path, "body=", FORM),
            Row(f"POST /dashboard/{kind}s/{{name}}/production", "404 303 404 303", f"{path}/production", FIRST, FORM),
            Row(f"POST /dashboard/{kind}s/{{name}}/run", "404 303 404 303", f"{path}/run", "argument.x=1", FORM),
        )
    ),
    Row("POST /dashboard/drafts/{kind}", "200 200 200 200", "/dashboard/drafts/prompt", "body=x", FORM),
    Row("GET /dashboard/functions", "200 200 200 200"),
    Row("POST /dashboard/functions/sync", "403 403 403 200", body="", headers=FORM),
    Row("GET /dashboard/cache", "200 200 200 200"),
    Row("POST /dashboard/cache/clear", "303 303 303 303", body="", headers=FORM, is_last=True),
    Row("GET /dashboard/people", "200 200 200 200"),
    Row("POST /dashboard/people/tokens", "403 303 403 303", body="email=<email>", headers=FORM),
    Row(
        "POST /dashboard/people/tokens/{token_id}/revoke",
        "404 303 404 303",
        "/dashboard/people/tokens/<spare_token>/revoke",
        "",
        FORM,
        is_last=True,
    ),
    Row("POST /dashboard/people/users", "403 403 403 409", body="email=<email>&role=user", headers=FORM),
    Row(
        "POST /dashboard/people/users/{user_id}", "403 403 403 303", "/dashboard/people/users/<user>", "role=user", FORM
    ),
    Row("GET /dashboard/models", "403 403 403 200"),
    Row("GET /dashboard/models/{name}", "403 403 403 200", "/dashboard/models/echo"),
    Row(
        "POST /dashboard/models",
        "403 403 403 303",
        body="name=page_of_<caller>&body=%7B%22kind%22:%22echo%22%7D",
        headers=FORM,
    ),
    Row("POST /dashboard/models/{name}", "403 403 403 303", "/dashboard/models/changed", "body=%7B%7D", FORM),
    Row("POST /dashboard/models/{name}", "403 403 403 400", "/dashboard/models/changed", "action=stop", FORM),
    Row("GET /dashboard/policies", "403 403 403 200"),
    Row("POST /dashboard/policies/{name}", "403 403 403 400", "/dashboard/policies/policy", "body=x", FORM),
    Row(
        "POST /dashboard/policies/{name}/dry-run",
        "403 403 403 400",
        "/dashboard/policies/policy/dry-run",
        "body=x",
        FORM,
    ),
    Row("POST /dashboard/policies/{name}/restart", "403 403 403 303", "/dashboard/policies/policy/restart", "", FORM),
    Row(
        "POST /dashboard/policies/{name}/planted/{item_id}/delete",
        "403 403 403 404",
        "/dashboard/policies/policy/planted/1000000/delete",
        "",
        FORM,
    ),
    Row("POST /dashboard/policies/{name}/draft", "403 403 403 200", "/dashboard/policies/policy/draft", "body=x", FORM),
    Row(
        "POST /dashboard/policies/{name}/recommendation",
        "403 403 403 409",
        "/dashboard/policies/policy/recommendation",
        "body=x",
        FORM,
    ),
    Row("GET /dashboard/policies/{name}", "403 403 403 200", "/dashboard/policies/policy"),
    Row("POST /dashboard/policies", "403 403 403 400", body="name=x&policy=x", headers=FORM),
    Row("POST /dashboard/policies/{name}/delete", "403 403 403 404", "/dashboard/policies/none/delete", "", FORM),
    Row("GET /dashboard/policies/{name}/planted", "403 403 403 200", "/dashboard/policies/policy/planted"),
    Row("POST /dashboard/policies/{name}/planted", "403 403 403 400", "/dashboard/policies/policy/planted", "", FORM),
    Row("GET /dashboard/limits", "200 200 200 200"),
    Row("POST /dashboard/limits", "403 403 403 400", body="who=nobody", headers=FORM),
    Row("POST /dashboard/limits/delete", "403 403 403 404", body="who=each&model=none", headers=FORM),
    Row("GET /dashboard/quality", "403 403 403 200"),
    Row("GET /dashboard/playground", "200 200 200 200"),
    Row("GET /dashboard/playground", "404 200 200 200", "/dashboard/playground?job=<ended>"),
    Row("GET /dashboard/playground", "404 200 200 200", "/dashboard/playground?left=<ended>"),
    Row("POST /dashboard/playground", "303 303 303 303", body="left=echo&message=hello", headers=FORM),
    Row("GET /dashboard/audit", "403 403 403 200"),
]
