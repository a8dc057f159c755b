"""The end of a user's right to review, in SQL: what they have goes back to the other reviewers."""

import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningUpdate

from signoff.core.transitions import Guard
from signoff.store import TransitionRequest
from signoff.stores.schema import ASSIGNED_TO_REVIEW, OPENED_TO_REVIEW, jobs
from signoff.stores.transaction import Tx
from signoff.stores.transitions import EVERY_COLUMN, changed_jobs, guards, parameters_of, record_transition, update_for

_OF_ACTOR = frozenset({Guard.ROUND, Guard.UNOPENED})
_EMAIL = sa.bindparam("email", type_=sa.Text)


def end_reviews(tx: Tx, email: str, actor: str) -> None:
    """Assign to nobody what is assigned to the reviewer `email`, and give back what they have open.

    Who has opened an assigned answer has to open it again.
    """
    for statement, request in (
        (_UNASSIGN, TransitionRequest(verb="assign", actor=actor, changes={"assignee": None})),
        (_LEAVE, TransitionRequest(verb="leave", actor=actor)),
    ):
        for job in changed_jobs(tx, statement, parameters_of(tx, request, email=email)):
            record_transition(tx, job, request)


def _statement(verb: str, *changed: str, of_user: sa.ColumnElement[bool]) -> ReturningUpdate[tuple[object, ...]]:
    return update_for(verb, changed).where(*guards(verb, but=_OF_ACTOR), of_user).returning(*EVERY_COLUMN)


_UNASSIGN = _statement("assign", "assignee", of_user=ASSIGNED_TO_REVIEW & (jobs.c.assignee == _EMAIL))
_LEAVE = _statement("leave", of_user=OPENED_TO_REVIEW & (jobs.c.review_lease == _EMAIL))
