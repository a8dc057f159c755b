"""The tables that no other `…_schema.py` has, for SQLite and PostgreSQL. Times are microseconds since 1970, UTC."""

from typing import Any

import sqlalchemy as sa

from signoff.core.delivery import DeliveryTarget
from signoff.core.job import Decision, Draft, JobError
from signoff.core.model import Model
from signoff.core.pipelines.function import Function
from signoff.core.pipelines.tree import Call
from signoff.core.reviews.policy import JobPolicy
from signoff.core.reviews.queues import NO_DEADLINE, RANK_OF_PRIORITY
from signoff.core.reviews.ruling import Ruling
from signoff.core.tokens import Usage
from signoff.core.usage import UsageTotals
from signoff.stores.json_column import JsonColumn
from signoff.stores.metadata import metadata, partial_index
from signoff.stores.people_schema import users

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("door", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("token_id", sa.Integer, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("response", sa.LargeBinary),
    sa.Column("error", JsonColumn(JobError)),
    sa.Column("usage", JsonColumn(Usage)),
    sa.Column("metadata", sa.LargeBinary, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("policy", JsonColumn(JobPolicy), nullable=False),
    sa.Column("client_id", sa.Text),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("fingerprint", sa.Text),
    sa.Column("upstream_object_id", sa.Text),
    sa.Column("retry_of", sa.Text),
    sa.Column("deliver", JsonColumn(tuple[DeliveryTarget, ...]), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("lease", sa.Text),
    sa.Column("lease_until", sa.BigInteger),
    sa.Column("draft", JsonColumn(Draft)),
    sa.Column("review_lease", sa.Text),
    sa.Column("review_lease_until", sa.BigInteger),
    sa.Column("review_deadline", sa.BigInteger),
    sa.Column("decision", JsonColumn(Decision)),
    sa.Column("release_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("cached_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("completion_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("cost_nanodollars", sa.BigInteger),
    sa.Column("queued_us", sa.BigInteger),
    sa.Column("ttft_us", sa.BigInteger),
    sa.Column("generation_us", sa.BigInteger),
    sa.Column("cache", sa.Text),
    sa.Column("cache_key", sa.Text),
    sa.Column("prompt", sa.Text),
    sa.Column("prompt_version", sa.Integer),
    sa.Column("parent_id", sa.Text),
    sa.Column("parent_round", sa.Integer),
    sa.Column("node", sa.Text),
    sa.Column("pipeline_id", sa.Integer),
    sa.Column("pipeline_version", sa.Integer),
    sa.Column("parked_at", sa.BigInteger),
    sa.Column("key_id", sa.Integer),
    sa.Column("headers", JsonColumn(dict[str, str])),
    sa.Column("ruling", JsonColumn(Ruling)),
    sa.Column("review_queue", sa.Text),
    sa.Column("review_priority", sa.SmallInteger),
    sa.Column("assignee", sa.Text),
    sa.Column("held_at", sa.BigInteger),
    sa.Column("escalated_at", sa.BigInteger),
    sa.Column("copy_of", sa.Text),
    sa.Column("batch_id", sa.Text),
    sa.Column("batch_line", sa.Integer),
)

_HAS_CLIENT_ID, _HAS_UPSTREAM_OBJECT = jobs.c.client_id.is_not(None), jobs.c.upstream_object_id.is_not(None)
# The jobs that workers claim when they are due. A partial index serves literals only.
_QUEUED = (jobs.c.status == sa.literal_column("'bot'")) & (jobs.c.lane == sa.literal_column("'later'"))
IS_WAITING = _QUEUED & jobs.c.lease.is_(None) & jobs.c.parked_at.is_(None)
_LEASED, _PARKED, _STEP = (column.is_not(None) for column in (jobs.c.lease, jobs.c.parked_at, jobs.c.parent_id))
_DECIDED, _LIMITED = jobs.c.release_at.is_not(None), jobs.c.review_deadline.is_not(None)
_ENDED = jobs.c.status.in_([sa.literal_column("'fail'"), sa.literal_column("'success'")])
_TURN = (jobs.c.lane, jobs.c.priority, jobs.c.user_id, jobs.c.due_at, jobs.c.id, jobs.c.model)
partial_index("jobs_to_claim", *_TURN, where=IS_WAITING)
partial_index("jobs_leased", jobs.c.status, jobs.c.lease_until, where=_LEASED)
partial_index("jobs_decided", jobs.c.status, jobs.c.release_at, where=_DECIDED)
partial_index("jobs_limited", jobs.c.status, jobs.c.review_deadline, where=_LIMITED)
partial_index("jobs_ended", jobs.c.status, jobs.c.updated_at, where=_ENDED)
# The last columns let a count of jobs that are neither steps nor copies read the index alone.
sa.Index("jobs_by_user", jobs.c.user_id, jobs.c.id, jobs.c.parent_id, jobs.c.copy_of)
sa.Index("jobs_by_status", jobs.c.status, jobs.c.id, jobs.c.parent_id)
sa.Index("jobs_by_user_and_status", jobs.c.user_id, jobs.c.status, jobs.c.id, jobs.c.parent_id, jobs.c.copy_of)
partial_index("jobs_by_upstream_object", jobs.c.upstream_object_id, jobs.c.id, where=_HAS_UPSTREAM_OBJECT)
partial_index("jobs_by_client_id", jobs.c.user_id, jobs.c.client_id, jobs.c.door, unique=True, where=_HAS_CLIENT_ID)
partial_index("jobs_by_place", jobs.c.parent_id, jobs.c.parent_round, jobs.c.node, unique=True, where=_STEP)
partial_index("jobs_parked", jobs.c.status, jobs.c.parked_at, where=_PARKED)

# Held answers without a verdict. Expressions of an index must stand in a query as they are here.
WAITS_FOR_REVIEW = (jobs.c.status == sa.literal_column("'human'")) & jobs.c.release_at.is_(None)
review_queue_name = sa.func.coalesce(jobs.c.review_queue, sa.literal_column("''", sa.Text))
_URGENCY = sa.literal_column("9", sa.Integer) - sa.func.coalesce(jobs.c.review_priority, jobs.c.priority)
_DEADLINE = sa.func.coalesce(jobs.c.review_deadline, sa.literal_column(str(NO_DEADLINE), sa.BigInteger))
review_rank = _URGENCY * sa.literal_column(str(RANK_OF_PRIORITY), sa.BigInteger) + _DEADLINE
_UNASSIGNED = WAITS_FOR_REVIEW & jobs.c.assignee.is_(None)
FREE_TO_REVIEW = _UNASSIGNED & jobs.c.review_lease.is_(None)
OPENED_TO_REVIEW = _UNASSIGNED & jobs.c.review_lease.is_not(None)
ASSIGNED_TO_REVIEW = WAITS_FOR_REVIEW & jobs.c.assignee.is_not(None)
_ESCALATED = WAITS_FOR_REVIEW & jobs.c.escalated_at.is_not(None)
_REVIEW_ORDER = (review_queue_name, review_rank, jobs.c.id)
# Lists walk these two in order, and filter by their last columns, so that they read only the jobs on the page.
partial_index("jobs_by_review_queue", *_REVIEW_ORDER, jobs.c.held_at, jobs.c.target, where=WAITS_FOR_REVIEW)
partial_index("jobs_by_hold", review_queue_name, jobs.c.held_at, jobs.c.id, jobs.c.target, where=WAITS_FOR_REVIEW)
partial_index("jobs_free_to_review", *_REVIEW_ORDER, jobs.c.user_id, jobs.c.round, where=FREE_TO_REVIEW)
partial_index("jobs_opened_to_review", *_REVIEW_ORDER, jobs.c.review_lease_until, where=OPENED_TO_REVIEW)
partial_index("jobs_by_assignee", jobs.c.assignee, review_rank, jobs.c.id, where=ASSIGNED_TO_REVIEW)
partial_index("jobs_escalated", review_queue_name, jobs.c.escalated_at, where=_ESCALATED)

# Waiting calls that ended before they were stored; see `stores.calls`. No id is in both tables.
calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("upstream_object_id", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
sa.Index("calls_by_status", calls.c.status, calls.c.id)
sa.Index("calls_by_user_and_status", calls.c.user_id, calls.c.status, calls.c.id)
sa.Index("calls_by_age", calls.c.created_at)
_HAS_OBJECT = calls.c.upstream_object_id.is_not(None)
partial_index("calls_by_upstream_object", calls.c.upstream_object_id, calls.c.id, where=_HAS_OBJECT)

function_calls = sa.Table(
    "function_calls",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("arguments", sa.LargeBinary, nullable=False),
    sa.Column("output", sa.LargeBinary),
    sa.Column("error", JsonColumn(JobError)),
    sa.Column("began_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger, nullable=False),
)

used_keys = sa.Table(
    "used_keys",
    metadata,
    sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, nullable=False, index=True),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("verb", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("data", JsonColumn(dict[str, Any]), nullable=False),
)

# Jobs whose waiting caller left before the answer, by the request with which the caller may return.
departures = sa.Table(
    "departures",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("token_id", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("left_at", sa.BigInteger, nullable=False, index=True),
)
sa.Index("departures_by_request", *(departures.c[name] for name in ("user_id", "token_id", "fingerprint", "job_id")))

votes = sa.Table(
    "votes",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("reviewer", sa.Text, primary_key=True),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    # Vote of one of several reviewers; NULL for a reviewer who decides alone, as `decisions` has it.
    sa.Column("decision", JsonColumn(Decision)),
)
sa.Index("votes_by_reviewer", votes.c.reviewer, votes.c.at, votes.c.job_id)
partial_index("votes_blind", votes.c.at, where=votes.c.decision.is_not(None))

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("decision", JsonColumn(Decision), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("lease", sa.Text),
    sa.Column("lease_until", sa.BigInteger),
    sa.Column("last_status", sa.Integer),
    sa.Column("last_error", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("done_at", sa.BigInteger),
)

_DUE = deliveries.c.state == sa.literal_column("'due'")
_FAILED = deliveries.c.state == sa.literal_column("'failed'")

partial_index("deliveries_due", deliveries.c.kind, deliveries.c.due_at, where=_DUE)
partial_index("deliveries_failed", deliveries.c.id, where=_FAILED)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey(users.c.id)),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("is_shared", sa.Boolean, nullable=False, server_default=sa.false()),
)
sa.Index("keys_by_user", keys.c.user_id, keys.c.id)

# Fingerprints of the keys that may have encrypted secrets of this database.
encryption_keys = sa.Table(
    "encryption_keys",
    metadata,
    sa.Column("fingerprint", sa.Text, primary_key=True),
    sa.Column("added_at", sa.BigInteger, nullable=False),
)

model_logs = sa.Table(
    "model_logs",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
sa.Index("model_logs_by_model", model_logs.c.model, model_logs.c.id)

models = sa.Table(
    "models",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("model", JsonColumn(Model), nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

prices = sa.Table(
    "prices",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("valid_from", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("input", sa.BigInteger, nullable=False),
    sa.Column("output", sa.BigInteger, nullable=False),
    sa.Column("cached_input", sa.BigInteger),
    sa.Column("request", sa.BigInteger, nullable=False),
)


def _sums_of_usage(name: str, time: str) -> sa.Table:
    """Return a table with a row for each period, which begins at `time`, and each combination of the dimensions."""
    return sa.Table(
        name,
        metadata,
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column(time, sa.BigInteger, nullable=False, index=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("token_id", sa.Integer, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("door", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("cache", sa.Text),
        sa.Column("prompt", sa.Text),
        sa.Column("prompt_version", sa.Integer),
        *(sa.Column(name, sa.BigInteger, nullable=False, info={"sum": True}) for name in UsageTotals.__struct_fields__),
    )


# Sums of jobs that have ended, also of deleted ones, and of calls whose result could not be written into their job.
usage_hours = _sums_of_usage("usage_hours", "hour")
usage_days = _sums_of_usage("usage_days", "day")

# The answers are in the jobs and calls that they belong to.
cached = sa.Table(
    "cached",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
)

sa.Index("cached_by_age", cached.c.created_at, cached.c.size_bytes)

compositions = sa.Table(
    "compositions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("user_id", sa.Integer, nullable=False),
    sa.Column("shared", sa.Boolean, nullable=False),
    sa.Column("newest", sa.Integer, nullable=False),
    sqlite_autoincrement=True,  # ids of deleted rows are never assigned again
)

composed_versions = sa.Table(
    "composed_versions",
    metadata,
    sa.Column("composed_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("tree", JsonColumn(Call)),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

composed_labels = sa.Table(
    "composed_labels",
    metadata,
    sa.Column("composed_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("label", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

composed_calls = sa.Table(
    "composed_calls",
    metadata,
    sa.Column("composed_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, primary_key=True, index=True),
)

functions = sa.Table(
    "functions",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("function", JsonColumn(Function), nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)
