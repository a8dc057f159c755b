"""Decisions and votes of reviewers, in SQL."""

from functools import cache
from typing import Any

import sqlalchemy as sa

from signoff.core.job import Decision, Job
from signoff.stores.schema import decisions, votes
from signoff.stores.statements import execute_prepared, insert_into
from signoff.stores.writer import Tx


def record_decision(tx: Tx, job: Job, decision: Decision) -> None:
    """Insert the decision of the job's round, and its vote. The primary key allows one decision for each round."""
    row = {"job_id": job.id, "round": job.round, "at": tx.now}
    vote = row | {"reviewer": decision.reviewer, "verdict": decision.verdict, "decision": None}
    execute_prepared(tx.conn, _vote_statement(tx.conn.dialect.name), vote)
    execute_prepared(tx.conn, _DECISION, row | {"decision": decision})


def record_vote(tx: Tx, job: Job, vote: Decision) -> None:
    """Insert a blind vote. The primary key allows each reviewer one vote for each round."""
    row = {"job_id": job.id, "round": job.round, "at": tx.now, "decision": vote}
    execute_prepared(tx.conn, _VOTE, row | {"reviewer": vote.reviewer, "verdict": vote.verdict})


@cache
def _vote_statement(dialect: str) -> Any:
    """Return the insert of a vote that does nothing if the reviewer has voted."""
    return insert_into(votes, dialect).values(_parameters_for(votes)).on_conflict_do_nothing()


def _parameters_for(table: sa.Table) -> dict[str, sa.BindParameter[Any]]:
    return {column.name: sa.bindparam(column.name, type_=column.type) for column in table.c}


_VOTE = sa.insert(votes).values(_parameters_for(votes))
_DECISION = sa.insert(decisions).values(_parameters_for(decisions))
