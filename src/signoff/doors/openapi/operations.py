"""Bodies, answers and errors of Litestar's routes, which it does not know: handlers parse and build JSON themselves."""

from typing import Any

import msgspec

from signoff.core.reviews.receipt import Head
from signoff.core.reviews.rules import PolicyDraft
from signoff.core.reviews.votes import Agreement
from signoff.doors import (
    budgets,
    generate,
    jobs,
    keys,
    limits,
    models,
    native,
    pipelines,
    policies,
    prompts,
    review_queues,
    reviews,
    session,
    streams,
    usage,
)
from signoff.doors.openapi.answers import catalog, reports
from signoff.doors.openapi.answers import jobs as job_answers
from signoff.doors.openapi.answers import reviews as review_answers
from signoff.doors.openapi.answers.listing import ListPage, ObjectList
from signoff.work.admin.issue import NewToken, TokenRequest
from signoff.work.admin.people import NewUser, UserChange
from signoff.work.jobs.query import JobEvent
from signoff.work.pipelines.history import RerunChange
from signoff.work.reviews.budget_report import BudgetGroups, BudgetReport, CatchReport
from signoff.work.reviews.dry_run import DryRun
from signoff.work.reviews.queues import QueueChange
from signoff.work.reviews.recommend import Recommendation


class Operation(msgspec.Struct, frozen=True):
    """Parts of an operation that Litestar does not know."""

    answer: Any = None
    """Type of the answer; None if it has no body, or if Litestar knows its form."""
    body: Any = None
    """Type of the body; None for no body."""
    other_answer: Any = None
    """Type of the answer in other cases; None if `answer` is the only one."""
    accepted: Any = None
    """Type of an answer with the status 202, beside that with 200; None if there is none."""
    errors: tuple[int, ...] = ()
    """Statuses of errors, besides those that follow from its parameters and its body."""
    unavailable: Any = None
    """Type of an answer with the status 503, which is no error in the format of the API; None if there is none."""
    redirects: bool = False
    """True if a browser gets a redirect to a page."""
    needs_body: bool = True
    """False if the body may be left out."""
    is_public: bool = False
    """True if callers need no token."""
    other_types: tuple[str, ...] = ()
    """Media types of other forms of the answer."""


_JOB = job_answers.JobAnswer
# Errors without the role, and if the state of the object does not allow it or its name is taken.
_ROLE, _STATE = (403,), (403, 409)
_WAIT = (403, 404, 409, 422, 429, 500, 502, 503, 504)
_QUEUED = (404, 409, 422, 429)


def _queue(body: Any) -> Operation:
    """Return the operation of a queue door."""
    return Operation(job_answers.TextContent, body, accepted=job_answers.QueueJob, errors=_WAIT)


def _library(kind: str, item: Any) -> dict[str, Operation]:
    """Return the operations of prompts, or of pipelines."""
    path = f"/api/{kind}s"
    return {
        f"GET {path}": Operation(ListPage[item]),
        f"POST {path}": Operation(item, prompts.NewVersion, errors=(409,)),
        f"GET {path}/{{name}}": Operation(item),
        f"PUT {path}/{{name}}": Operation(item, prompts.NewVersion, errors=(409,)),
        f"PATCH {path}/{{name}}": Operation(item, prompts.ItemChanges, errors=(409,)),
        f"DELETE {path}/{{name}}": Operation(errors=(409,)),
        f"GET {path}/{{name}}/users": Operation(ListPage[catalog.PipelineAnswer]),
        f"GET {path}/{{name}}/versions": Operation(ListPage[item]),
        f"GET {path}/{{name}}/difference": Operation(catalog.Difference),
        f"PUT {path}/{{name}}/labels/{{label}}": Operation(item, prompts.LabelTarget),
        f"DELETE {path}/{{name}}/labels/{{label}}": Operation(errors=(409,)),
    }


_JOBS = {
    "POST /enqueue": Operation(job_answers.AcceptedJob, Any, errors=_QUEUED),
    "GET /job": Operation(_JOB, errors=(404,)),
    "GET /jobs": Operation(list[_JOB], errors=(404,)),
    "POST /reviewJob": Operation(job_answers.Confirmation, jobs.ReviewRequest, errors=(403, 404, 409)),
    "GET /liveness": Operation(is_public=True),
    "POST /generate": _queue(generate.TextRequest),
    "POST /chat_completion": _queue(generate.ChatRequest),
    "GET /check_status": Operation(job_answers.QueueResult, errors=(404,)),
    "POST /check_status": Operation(job_answers.QueueResult, errors=(404,)),
    "GET /api/jobs": Operation(job_answers.JobPage, errors=(404,)),
    "POST /api/jobs": Operation(_JOB, native.NewJob, errors=_QUEUED),
    "GET /api/jobs/{job_id}": Operation(_JOB),
    "DELETE /api/jobs/{job_id}": Operation(_JOB, errors=_STATE),
    "GET /api/jobs/{job_id}/events": Operation(ObjectList[JobEvent], other_types=("text/event-stream",)),
    "POST /api/jobs/{job_id}/retry": Operation(_JOB, errors=(403, 409, 429)),
    "GET /api/jobs/{job_id}/run": Operation(ObjectList[job_answers.LoggedCallAnswer], errors=(409,)),
    "POST /api/jobs/{job_id}/rerun": Operation(_JOB, RerunChange, errors=(403, 409, 429)),
    "GET /api/jobs/{job_id}/deliveries": Operation(ObjectList[job_answers.DeliveryAnswer]),
    "POST /api/deliveries/{delivery_id}/resend": Operation(job_answers.DeliveryAnswer, errors=_STATE),
}
_REVIEWS = {
    "GET /api/reviews": Operation(ListPage[review_answers.ReviewSummary], errors=_ROLE),
    "POST /api/reviews/next": Operation(
        review_answers.ReviewItem, reviews.NextRequest, errors=(403, 404), needs_body=False
    ),
    "GET /api/reviews/stats": Operation(ObjectList[review_answers.QueueDepthAnswer], errors=_ROLE),
    "GET /api/reviews/history": Operation(ListPage[review_answers.PastVerdictAnswer], errors=_ROLE),
    "GET /api/reviews/agreement": Operation(Agreement, errors=_ROLE),
    "POST /api/reviews/bulk": Operation(review_answers.BulkAnswer, reviews.BulkRequest, errors=(403, 404)),
    "POST /api/reviews/bulk/{bulk_id}/apply": Operation(review_answers.BulkAnswer, errors=_ROLE),
    "POST /api/reviews/bulk/{bulk_id}/undo": Operation(review_answers.BulkAnswer, errors=_ROLE),
    "GET /api/reviews/{job_id}": Operation(review_answers.ReviewItem, errors=_STATE),
    "POST /api/reviews/{job_id}/open": Operation(review_answers.ReviewItem, errors=_STATE),
    "POST /api/reviews/{job_id}/renew": Operation(review_answers.ReviewItem, errors=_STATE),
    "POST /api/reviews/{job_id}/leave": Operation(errors=_STATE),
    "POST /api/reviews/{job_id}/draft": Operation(review_answers.ReviewItem, reviews.DraftRequest, errors=_STATE),
    "POST /api/reviews/{job_id}/decide": Operation(review_answers.ReviewState, reviews.DecideRequest, errors=_STATE),
    "POST /api/reviews/{job_id}/undo": Operation(review_answers.ReviewState, errors=_STATE),
    "POST /api/reviews/{job_id}/escalate": Operation(
        review_answers.ReviewState, reviews.EscalateRequest, errors=_STATE
    ),
    "POST /api/reviews/{job_id}/assign": Operation(review_answers.ReviewState, reviews.AssignRequest, errors=_STATE),
    "GET /api/reviews/feedback": Operation(errors=_ROLE),
    "GET /api/reviews/figures": Operation(reports.ReviewReport, errors=_ROLE, other_types=("text/csv",)),
    "GET /api/review-queues": Operation(ObjectList[review_answers.ReviewQueueAnswer], errors=_ROLE),
    "PUT /api/review-queues/{name}": Operation(review_answers.ReviewQueueAnswer, QueueChange, errors=_ROLE),
    "DELETE /api/review-queues/{name}": Operation(errors=_ROLE),
    "GET /api/review-reasons": Operation(review_answers.Reasons, errors=_ROLE),
    "PUT /api/review-reasons": Operation(review_answers.Reasons, review_queues.ReasonsRequest, errors=_ROLE),
    "GET /api/receipts": Operation(ListPage[review_answers.ReceiptAnswer], errors=_ROLE),
    "GET /api/receipts/head": Operation(Head, errors=_ROLE),
    "GET /api/receipts/key": Operation(review_answers.ReceiptKey),
}
_POLICIES = {
    "GET /api/policies": Operation(ListPage[review_answers.PolicyAnswer], errors=_ROLE),
    "GET /api/policies/{name}": Operation(review_answers.PolicyAnswer, errors=_ROLE),
    "GET /api/policies/{name}/versions": Operation(ListPage[review_answers.PolicyAnswer], errors=_ROLE),
    "PUT /api/policies/{name}": Operation(review_answers.PolicyAnswer, PolicyDraft, errors=_STATE),
    "DELETE /api/policies/{name}": Operation(errors=_ROLE),
    "POST /api/policies/{name}/recommendation": Operation(
        Recommendation, policies.RecommendationRequest, errors=_STATE, needs_body=False
    ),
    "POST /api/policies/{name}/dry-run": Operation(DryRun, policies.DryRunRequest, errors=_ROLE, needs_body=False),
    "GET /api/policies/{name}/budget": Operation(BudgetReport, other_answer=BudgetGroups, errors=_ROLE),
    "POST /api/policies/{name}/budget/restart": Operation(BudgetReport, other_answer=BudgetGroups, errors=_ROLE),
    "GET /api/policies/{name}/catch-rates": Operation(ObjectList[CatchReport], errors=_ROLE),
    "GET /api/policies/{name}/planted": Operation(ListPage[review_answers.PlantedAnswer], errors=_ROLE),
    "POST /api/policies/{name}/planted": Operation(review_answers.PlantedAnswer, budgets.NewPlantedItem, errors=_STATE),
    "DELETE /api/policies/{name}/planted/{item_id}": Operation(errors=_ROLE),
}
_ADMINISTRATION = {
    "GET /api/models": Operation(ObjectList[catalog.ModelAnswer], errors=_ROLE),
    "POST /api/models": Operation(catalog.ModelAnswer, models.ModelDescription, errors=_STATE),
    "GET /api/models/{name}": Operation(catalog.ModelAnswer, errors=_ROLE),
    "PATCH /api/models/{name}": Operation(catalog.ModelAnswer, models.ModelDescription, errors=_STATE),
    "DELETE /api/models/{name}": Operation(errors=_ROLE),
    "POST /api/models/{name}": Operation(catalog.TestResult, Any, catalog.ModelAnswer, errors=_ROLE, needs_body=False),
    "GET /api/keys": Operation(ListPage[catalog.KeyAnswer]),
    "POST /api/keys": Operation(catalog.KeyAnswer, keys.NewKey, errors=_STATE),
    "DELETE /api/keys/{key_id}": Operation(),
    "GET /api/users": Operation(ListPage[catalog.UserAnswer], errors=_ROLE),
    "POST /api/users": Operation(catalog.UserAnswer, NewUser, errors=_STATE),
    "PATCH /api/users/{user}": Operation(catalog.UserAnswer, UserChange, errors=_STATE),
    "DELETE /api/users/{user}": Operation(catalog.UserErasure, errors=_STATE),
    "GET /api/tokens": Operation(ListPage[catalog.TokenAnswer], errors=_ROLE),
    "POST /api/tokens": Operation(NewToken, TokenRequest, errors=(403, 404, 409)),
    "DELETE /api/tokens/{token_id}": Operation(errors=_ROLE),
    "GET /api/sessions": Operation(ListPage[catalog.TokenAnswer], errors=_ROLE),
    "DELETE /api/sessions/{session_id}": Operation(errors=_ROLE),
    "DELETE /api/sessions": Operation(catalog.SessionCount, errors=(403, 404)),
    "POST /api/session": Operation(
        job_answers.Confirmation, session.SignIn, errors=(401, 403, 429), is_public=True, redirects=True
    ),
    "DELETE /api/session": Operation(job_answers.Confirmation, errors=_ROLE),
    "GET /signin/{code}": Operation(errors=(401, 403), is_public=True, redirects=True),
    "GET /api/functions": Operation(ListPage[catalog.FunctionAnswer]),
    "POST /api/functions/sync": Operation(catalog.FunctionSync, errors=_ROLE),
    "GET /api/pipeline/args": Operation(catalog.PipelineParams, errors=(404,)),
    "POST /api/pipeline/call": Operation(catalog.PipelineResult, pipelines.NewCall, errors=_WAIT),
    "GET /api/streams": Operation(ObjectList[catalog.StreamAnswer], errors=_ROLE),
    "POST /api/streams": Operation(catalog.StreamAnswer, streams.NewStream, errors=_STATE),
    "GET /api/streams/{name}": Operation(catalog.StreamAnswer, errors=_ROLE),
    "PATCH /api/streams/{name}": Operation(catalog.StreamAnswer, streams.StreamChange, errors=_STATE),
    "DELETE /api/streams/{name}": Operation(errors=_STATE),
    "GET /schema/asyncapi.json": Operation(dict[str, Any], errors=_ROLE),
    "GET /api/limits": Operation(reports.LimitList),
    "GET /api/limits/refusals": Operation(ObjectList[reports.LimitDenials]),
    "PUT /api/limits/{who}": Operation(reports.LimitAnswer, limits.LimitDescription, errors=_ROLE),
    "DELETE /api/limits/{who}": Operation(errors=_ROLE),
    "GET /api/usage": Operation(reports.UsageReport, other_types=("text/csv",)),
    "GET /api/usage/latencies": Operation(reports.LatencyReport, other_types=("text/csv",)),
    "GET /api/prices": Operation(ObjectList[reports.PriceAnswer]),
    "PUT /api/prices": Operation(reports.PriceAnswer, usage.NewPrice, errors=_ROLE),
    "DELETE /api/prices": Operation(errors=(403, 404)),
    "GET /api/audit": Operation(ListPage[reports.AuditAnswer], errors=_ROLE),
    "GET /metrics": Operation(errors=_ROLE),
    "GET /health/live": Operation(is_public=True),
    "GET /health/ready": Operation(is_public=True, unavailable=dict[str, bool | int | str]),
}
OPERATIONS: dict[str, Operation] = {
    **_JOBS,
    **_REVIEWS,
    **_POLICIES,
    **_ADMINISTRATION,
    **_library("prompt", catalog.PromptAnswer),
    **_library("pipeline", catalog.PipelineAnswer),
}
"""Operations by method and path."""

PARAMETERS = {
    "action": "Action of the entries, such as `model_created`.",
    "actor": "Actor of the entries, such as `user:EMAIL`.",
    "after": "Cursor: `next` of the previous page.",
    "assignee": "E-mail address of the reviewer whom the answers are assigned to.",
    "before": "Cursor: `next` of the previous page.",
    "bulk_id": "Id of the bulk decision.",
    "by": "Dimensions of the rows, separated by commas.",
    "code": "Code of the link.",
    "delivery_id": "Id of the delivery.",
    "erase": "`true` confirms that everything of the user is erased; this cannot be undone.",
    "force": "`true` deletes it even if pipelines call it.",
    "format": "`json` or `csv`.",
    "from": "Number or label of the older version.",
    "group": "Group, for a budget that counts each group separately.",
    "health": "`true` adds the result of a connection test.",
    "id": "Id of the job.",
    "idempotency-key": "Key with which repeated requests are one job.",
    "item_id": "Id of the planted item.",
    "job_id": "Id of the job.",
    "key_id": "Id of the upstream key.",
    "kind": "Form of the rows: `decisions`, `supervised`, `preference` or `rejected`.",
    "label": "Label of a version, such as `production`.",
    "limit": "Maximum number of objects of the page.",
    "min_age_seconds": "Least time in seconds since the answer was held.",
    "model": "Name of the model.",
    "name": "Name of the object; that of a prompt or pipeline may be its id.",
    "offset": "Number of rows to leave out.",
    "operation": "`try` sends one request; `start` and `stop` are for models that are processes.",
    "order": "`urgent`, `oldest` or `newest`.",
    "pipeline_id": "Id of the pipeline.",
    "pipeline_name": "Name of the pipeline.",
    "policy": "Name of the policy.",
    "prompt": "Name of the prompt.",
    "prompt_version": "Version of the prompt.",
    "queue": "Name of a review queue, empty for that of all reviewers.",
    "queue_name": "Queue of the setting `queues`, which may name a model.",
    "reviewer": "E-mail address of the reviewer.",
    "session_id": "Id of the session.",
    "since": "Start of the period, inclusive (ISO 8601, UTC).",
    "status": "Status of the jobs: `bot`, `human`, `success` or `fail`.",
    "subject": "Subject of the entries, such as `model:NAME`.",
    "target": "Name that requests gave: a model, prompt or pipeline.",
    "to": "Number or label of the newer version.",
    "token_id": "Id of the token.",
    "total": "`true` adds the number of all jobs that match.",
    "until": "End of the period, exclusive (ISO 8601, UTC).",
    "user": "Id or e-mail address of the user.",
    "user_id": "Id of the user.",
    "valid_from": "Time from which the price is valid.",
    "version": "Number or label of the version.",
    "wait": "Seconds to wait for the end of the job.",
    "who": "`all`, `each`, `user:EMAIL` or `token:ID`.",
}
"""Descriptions of path and query parameters by name; one name means the same everywhere."""
