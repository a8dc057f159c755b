"""Decisions and votes of reviewers, in SQL."""

from functools import cache
from typing import Any

import sqlalchemy as sa

from signoff.core.job import Decision, Job
from signoff.stores.schema import decisions, votes
from signoff.stores.statements import execute_on_sqlite, insert_into
from signoff.stores.writer import Tx


def record_decision(tx: Tx, job: Job, decision: Decision) -> None:
    """Insert the decision of the job's round, and its vote. The primary key allows one decision for each round."""
    row = {"job_id": job.id, "round": job.round, "at": tx.now}
    vote = row | {"reviewer": decision.reviewer, "verdict": decision.verdict, "decision": None}
    _insert(tx, _vote_statement(tx.conn.dialect.name), vote)
    _insert(tx, _DECISION, row | {"decision": decision})


def record_vote(tx: Tx, job: Job, vote: Decision) -> None:
    """Insert a blind vote. The primary key allows each reviewer one vote for each round."""
    row = {"job_id": job.id, "round": job.round, "at": tx.now, "decision": vote}
    _insert(tx, _VOTE, row | {"reviewer": vote.reviewer, "verdict": vote.verdict})


@cache
def _vote_statement(dialect: str) -> Any:
    """Return the insert of a vote that does nothing if the reviewer has voted."""
    return insert_into(votes, dialect).values(_parameters_for(votes)).on_conflict_do_nothing()


def _parameters_for(table: sa.Table) -> dict[str, sa.BindParameter[Any]]:
    return {column.name: sa.bindparam(column.name, type_=column.type) for column in table.c}


def _insert(tx: Tx, statement: sa.Insert, row: dict[str, Any]) -> None:
    """Execute an insert that is built once."""
    if tx.conn.dialect.name == "sqlite":
        execute_on_sqlite(tx.conn, statement, row)
    else:
        tx.conn.execute(statement, row)


_VOTE = sa.insert(votes).values(_parameters_for(votes))
_DECISION = sa.insert(decisions).values(_parameters_for(decisions))
