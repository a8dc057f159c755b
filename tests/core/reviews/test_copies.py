"""Copies of jobs for reviewers: what they take from a job, and what they do not."""

from __future__ import annotations

import msgspec
import pytest

from signoff.core.job import Job
from signoff.core.reviews.copies import COPIED, copy_for_reviewers, planted_copy
from signoff.core.reviews.planted import PlantedItem
from signoff.stores import batches_schema, schema
from support.stores import ANSWER, a_job

# Columns that a copy has values of its own for, or the defaults of a new job.
OWN = frozenset(
    (
        *("id", "status", "copy_of", "round", "seq", "created_at", "updated_at", "due_at", "held_at"),
        *("error", "client_id", "idempotency_key", "fingerprint", "upstream_object_id", "retry_of"),
        *("key_id", "headers", "deliver", "lease", "lease_until", "parked_at"),
        *("attempt", "draft", "review_lease", "review_lease_until", "review_deadline", "decision", "release_at"),
        *("assignee", "escalated_at"),
        *("parent_id", "parent_round", "node", "pipeline_id", "pipeline_version", "batch_id", "batch_line"),
    )
)
ITEM = PlantedItem(policy="p", path="/v1/chat/completions", body=b'{"messages":[]}', response=ANSWER)


def a_line() -> Job:
    changes = {"client_id": "c", "idempotency_key": "k", "parent_id": "r", "parent_round": 1, "node": "0"}
    return a_job(status="human", round=1, response=ANSWER, batch_id="batch_1", batch_line=3, **changes)


def test_each_column_of_a_job_is_copied_for_reviewers_or_not() -> None:
    assert len(COPIED) == len(set(COPIED))
    assert set(COPIED).isdisjoint(OWN)
    assert {*COPIED, *OWN} == {*Job.__struct_fields__}


@pytest.mark.parametrize("copied", [copy_for_reviewers(a_line(), 5), planted_copy(ITEM, a_line(), "x", 5)])
def test_a_copy_breaks_no_unique_index_beside_its_job(copied: Job) -> None:
    assert batches_schema.jobs is schema.jobs
    unique = [index for index in schema.jobs.indexes if index.unique]
    assert {index.name for index in unique} == {"jobs_by_client_id", "jobs_by_place", "jobs_by_batch"}
    columns = msgspec.structs.asdict(copied)
    for index in unique:
        assert None in [columns[column.name] for column in index.columns], index.name
