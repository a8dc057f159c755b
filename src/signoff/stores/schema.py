"""The tables, for SQLite and PostgreSQL alike. Times are microseconds since 1970 in UTC."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from signoff.core.answer import Usage
from signoff.core.delivery import Deliver
from signoff.core.job import Decision, Edit, JobError
from signoff.core.policy import Policy
from signoff.core.target import Model


class Packed(TypeDecorator[Any]):
    """A frozen value kept as its JSON text; checked against its type when it is read."""

    impl = sa.LargeBinary
    cache_ok = True

    def __init__(self, value_type: Any) -> None:
        super().__init__()
        self.value_type = value_type
        self._decode = msgspec.json.Decoder(value_type).decode

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        """From the value to its JSON."""
        return None if value is None else msgspec.json.encode(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """From its JSON to the value."""
        return None if value is None else self._decode(value)


metadata = sa.MetaData()

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
    sa.Column("error", Packed(JobError)),
    sa.Column("usage", Packed(Usage)),
    sa.Column("metadata", sa.LargeBinary, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("policy", Packed(Policy), nullable=False),
    sa.Column("own_id", sa.Text),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("fingerprint", sa.Text),
    sa.Column("retry_of", sa.Text),
    sa.Column("deliver", Packed(tuple[Deliver, ...]), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("lease", sa.Text),
    sa.Column("lease_until", sa.BigInteger),
    sa.Column("draft", Packed(Edit)),
    sa.Column("review_lease", sa.Text),
    sa.Column("review_lease_until", sa.BigInteger),
    sa.Column("review_deadline", sa.BigInteger),
    sa.Column("decision", Packed(Decision)),
    sa.Column("release_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

_NAMED = jobs.c.own_id.is_not(None)
_WAITING = (jobs.c.status == "bot") & jobs.c.lease.is_(None)
_LEASED = jobs.c.lease.is_not(None)
_DECIDED = jobs.c.release_at.is_not(None)
_LIMITED = jobs.c.review_deadline.is_not(None)
_ENDED = jobs.c.status.in_([sa.literal_column("'fail'"), sa.literal_column("'success'")])

sa.Index(
    "jobs_to_claim", jobs.c.lane, jobs.c.priority.desc(), jobs.c.id, sqlite_where=_WAITING, postgresql_where=_WAITING
)
sa.Index("jobs_leased", jobs.c.status, jobs.c.lease_until, sqlite_where=_LEASED, postgresql_where=_LEASED)
sa.Index("jobs_decided", jobs.c.status, jobs.c.release_at, sqlite_where=_DECIDED, postgresql_where=_DECIDED)
sa.Index("jobs_limited", jobs.c.status, jobs.c.review_deadline, sqlite_where=_LIMITED, postgresql_where=_LIMITED)
sa.Index("jobs_ended", jobs.c.status, jobs.c.updated_at, sqlite_where=_ENDED, postgresql_where=_ENDED)
sa.Index("jobs_by_user", jobs.c.user_id, jobs.c.id)
sa.Index("jobs_by_status", jobs.c.status, jobs.c.id)
sa.Index("jobs_by_own_id", jobs.c.user_id, jobs.c.own_id, unique=True, sqlite_where=_NAMED, postgresql_where=_NAMED)

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
    sa.Column("data", Packed(dict[str, Any]), nullable=False),
)

votes = sa.Table(
    "votes",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("reviewer", sa.Text, primary_key=True),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("decision", Packed(Decision), nullable=False),
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

sa.Index("deliveries_due", deliveries.c.kind, deliveries.c.due_at, sqlite_where=_DUE, postgresql_where=_DUE)
sa.Index("deliveries_failed", deliveries.c.id, sqlite_where=_FAILED, postgresql_where=_FAILED)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("email", sa.Text, nullable=False, unique=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("password_hash", sa.Text),
    sa.Column("active", sa.Boolean, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id")),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("model", Packed(Model), nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)
