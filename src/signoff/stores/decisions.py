"""Decisions and votes of reviewers, in SQL."""

from typing import Any

import sqlalchemy as sa

from signoff.core.job import Decision, Job
from signoff.stores.schema import decisions, votes
from signoff.stores.statements import execute_prepared
from signoff.stores.transaction import Tx


def record_decision(tx: Tx, job: Job, decision: Decision) -> None:
    """Add the decision of the job's round, and the vote of its reviewer unless that is there.

    The primary key allows one decision for each round.
    """
    row = {"job_id": job.id, "round": job.round, "at": tx.now}
    tx.add_missing(votes, row | {"reviewer": decision.reviewer, "verdict": decision.verdict, "decision": None})
    tx.add(decisions, row | {"decision": decision})


def added_decision(tx: Tx, job_id: str, review_round: int | None) -> Decision | None:
    """Return the decision of a round that the transaction has added, and not inserted yet."""
    rows = (row for row in tx.added_to(decisions) if (row["job_id"], row["round"]) == (job_id, review_round))
    return next((row["decision"] for row in rows), None)


def record_vote(tx: Tx, job: Job, vote: Decision) -> None:
    """Insert a blind vote. The primary key allows each reviewer one vote for each round."""
    row = {"job_id": job.id, "round": job.round, "at": tx.now, "decision": vote}
    execute_prepared(tx.conn, _VOTE, row | {"reviewer": vote.reviewer, "verdict": vote.verdict})


def _parameters_for(table: sa.Table) -> dict[str, sa.BindParameter[Any]]:
    return {column.name: sa.bindparam(column.name, type_=column.type) for column in table.c}


_VOTE = sa.insert(votes).values(_parameters_for(votes))
