"""Waiting calls that ended before they were stored: one narrow row each, from which the job and its event are derived.

Only what queries search by is a column of the table; all else is packed into the column `data`, in MessagePack.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from signoff.core.ask import Lane
from signoff.core.cache import CacheState
from signoff.core.job import Event, Job, JobError
from signoff.core.reviews.policy import JobPolicy
from signoff.core.reviews.ruling import Ruling
from signoff.core.tokens import Usage
from signoff.stores.created_objects import add_created_objects
from signoff.stores.schema import calls
from signoff.stores.transaction import Tx
from signoff.stores.transitions import event_of, initial_data
from signoff.stores.usage import count_ended


class PackedCall(msgspec.Struct, array_like=True, frozen=True):
    """The value of the column `data`: the transitions of a call, their actor, and columns of its job.

    A later version may append fields that have a default, and must not remove or reorder any.
    """

    verbs: tuple[str, ...]
    actor: str
    usage_json: bytes | None
    """In JSON, because an upstream may count more tokens than an integer of MessagePack can hold."""
    door: str
    lane: Lane
    token_id: int
    target: str
    model: str
    path: str
    body: bytes
    response: bytes | None
    error: JobError | None
    metadata: bytes
    priority: int
    policy: JobPolicy
    fingerprint: str | None
    retry_of: str | None
    prompt: str | None
    prompt_version: int | None
    key_id: int | None
    attempt: int
    max_attempts: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nanodollars: int | None
    queued_us: int | None
    ttft_us: int | None
    generation_us: int | None
    cache: CacheState | None
    cache_key: str | None
    headers: dict[str, str] | None = None
    ruling: Ruling | None = None

    @property
    def usage(self) -> Usage | None:
        """The tokens of the answer."""
        return None if self.usage_json is None else msgspec.json.decode(self.usage_json, type=Usage)


_PACKED = PackedCall.__struct_fields__[3:]
_COLUMNS = ("id", "status", "user_id", "upstream_object_id")
_TIMES = ("created_at", "updated_at", "due_at")
# The fields of a job that a call does not use, and their values.
_UNUSED = {
    field.name: field.default
    for field in msgspec.structs.fields(Job)
    if field.name not in {"usage", *_PACKED, *_COLUMNS, *_TIMES}
}
_UNUSED_VALUES = tuple(_UNUSED.values())
_packed_values = attrgetter(*_PACKED)
_unused_values = attrgetter(*_UNUSED)
_encode = msgspec.msgpack.Encoder().encode
decode_call = msgspec.msgpack.Decoder(PackedCall).decode


def is_plain(job: Job) -> bool:
    """Return True if an ended job can be a call: it was not held, leased or delivered, and belongs to no run.

    It has no id or key of the caller's choice either, which would have to be unique among all jobs.
    """
    return _unused_values(job) == _UNUSED_VALUES


def encode_call(job: Job, *, actor: str, verbs: Sequence[str]) -> bytes:
    """Return the value of the column `data` for a job whose transitions were `verbs`.

    Raises ValueError if the job is not plain.
    """
    if not is_plain(job):
        raise ValueError(f"The job {job.id} has a value that only a stored job has; store it with `insert_ended`.")
    usage_json = None if job.usage is None else msgspec.json.encode(job.usage)
    return _encode((verbs, actor, usage_json, *_packed_values(job)))


def insert_call(tx: Tx, job: Job, data: bytes) -> int:
    """Add the row of an ended call to the transaction, and count its usage. Return its time, in microseconds."""
    row = {
        "id": job.id,
        "status": job.status,
        "user_id": job.user_id,
        "upstream_object_id": job.upstream_object_id,
        "created_at": tx.now,
        "data": data,
    }
    tx.add(calls, row)
    add_created_objects(tx, job)
    count_ended(tx, job, tx.now)
    return tx.now


def read_call(conn: Connection, job_id: str) -> sa.Row[Any] | None:
    """Return the row of a call, or None if there is none with this id."""
    return conn.execute(_BY_ID, {"job": job_id}).one_or_none()


def job_of_call(row: Any) -> Job:
    """Return the job that a row stands for."""
    packed = decode_call(row.data)
    return Job(
        **{name: getattr(row, name) for name in _COLUMNS},
        **dict.fromkeys(_TIMES, row.created_at),
        usage=packed.usage,
        **dict(zip(_PACKED, _packed_values(packed), strict=True)),
    )


def event_of_call(row: Any) -> Event:
    """Return the event that a row stands for: it has the last verb of the call, and `moves` lists them all."""
    packed, job = decode_call(row.data), job_of_call(row)
    data = initial_data(job) | {"moves": packed.verbs}
    event = event_of(job, packed.verbs[-1], packed.actor, data)
    return Event(**event | {"data": msgspec.json.decode(msgspec.json.encode(data))})


_BY_ID = sa.select(*calls.c).where(calls.c.id == sa.bindparam("job", type_=sa.Text))
