"""Audits of error budgets and verdicts on planted items, in the transactions of the transitions of their jobs.

`succeed` uses a pass, `hold` opens an audit, a verdict closes it, and `cancel` gives reviewers a copy of the job.
"""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from signoff.core.job import Decision, Job, JobError
from signoff.core.reviews.answer_digest import digest_answer, is_caught, is_wrong
from signoff.core.reviews.budget_period import BudgetTerms
from signoff.core.reviews.coin import Coin
from signoff.core.reviews.copies import copy_for_reviewers
from signoff.core.reviews.ruling import Ruling
from signoff.errors import PassLapsed
from signoff.store import TransitionRequest
from signoff.stores.budgets_schema import (
    budget_audits,
    budget_leases,
    budget_periods,
    catch_counts,
    planted_jobs,
)
from signoff.stores.schema import decisions, events
from signoff.stores.statements import insert_into
from signoff.stores.transaction import Tx

VERDICTS = frozenset({"approve", "redo", "reject"})


def check_pass(tx: Tx, request: TransitionRequest) -> None:
    """Lock the lease of the pass that a `succeed` uses. Raises PassLapsed if the lease is gone."""
    coin = coin_in(request.changes)
    if request.verb != "succeed" or coin is None or coin.lease is None:
        return
    if tx.conn.execute(_LOCK_LEASE, {"lease_id": coin.lease}).first() is None:
        raise PassLapsed


def end_of_copy(asker: str | None) -> TransitionRequest:
    """Return the end of a copy that a reviewer sends back: no model is asked for it.

    Its error is that of a job whose caller has cancelled it, because reviewers see it. `asker` is the actor who has
    submitted the job of the copy; None if that is not known.
    """
    by = "an admin" if asker is None else asker.removeprefix("user:")
    error = JobError(code="cancelled", message=f"Cancelled by {by}.", status=409)
    return TransitionRequest(verb="cancel", actor="policy", changes={"error": error})


def asker_of(tx: Tx, copy: Job) -> str | None:
    """Return the actor who has submitted the job of a copy; None if the job was deleted."""
    return tx.conn.execute(_ASKER, {"original": copy.copy_of}).scalar_one_or_none()


def coin_in(changes: Mapping[str, object]) -> Coin | None:
    """Return the coin of the ruling that a transition stores; None if it stores none."""
    ruling = changes.get("ruling")
    return ruling.coin if isinstance(ruling, Ruling) else None


def record_coin(tx: Tx, job: Job, request: TransitionRequest) -> None:
    """Use the pass of an answer that leaves; give that of a held one back, and open its audit if its coin says so."""
    coin = coin_in(request.changes)
    if coin is None or coin.policy is None:
        return
    match request.verb:
        case "succeed":
            tx.conn.execute(_USE_PASS, {"lease_id": coin.lease})
        case "hold":
            tx.conn.execute(_RETURN_PASS, {"lease_id": coin.lease})
            if coin.is_audit:
                _open_audit(tx, job, coin)
        case _:
            return


def audit_row(job: Job, coin: Coin, terms: BudgetTerms, now: int) -> dict[str, object]:
    """Return the row of the audit that the coin of a held job opens."""
    return {
        "job_id": job.id,
        "round": job.round,
        "attempt": job.attempt,
        "policy": coin.policy,
        "period": coin.period,
        "coin": coin.value,
        "rate": coin.audit_rate,
        "digest": digest_answer(job.response, terms.harmless),
        "opened_at": now,
    }


def _open_audit(tx: Tx, job: Job, coin: Coin) -> None:
    terms = tx.conn.execute(_COUNT_OPENED, {"of_policy": coin.policy, "of_period": coin.period}).scalar_one()
    tx.conn.execute(sa.insert(budget_audits), audit_row(job, coin, terms, tx.now))


def record_verdict(tx: Tx, job: Job, verb: str) -> Job | None:
    """Close the audit of `job` and count its planted item, if a verdict has taken effect.

    Return the copy that goes on in review if the job was cancelled under audit; the caller inserts it.
    """
    if verb in VERDICTS:
        _close_audit(tx, job, verb)
        _count_planted(tx, job, verb)
    if verb != "cancel" or job.round == 0:
        return None
    tx.conn.execute(sa.delete(planted_jobs).where(planted_jobs.c.job_id == job.id))
    if tx.conn.execute(_OPEN_AUDIT, {"audited": job.id}).first() is None:
        return None
    copy = copy_for_reviewers(job, tx.now)
    tx.conn.execute(_MOVE_AUDIT, {"audited": job.id, "new_id": copy.id})
    return copy


def _close_audit(tx: Tx, job: Job, verb: str) -> None:
    for audit in tx.conn.execute(_OPEN_AUDIT, {"audited": job.id}).all():
        verdict = is_wrong(verb, job.response, audit.digest, audit.terms.harmless)
        tx.conn.execute(_CLOSE_AUDIT, {"audited": job.id, "verdict": verdict, "at": tx.now})
        values = {"of_policy": audit.policy, "of_period": audit.period, "more": int(verdict)}
        tx.conn.execute(_COUNT_CLOSED, values)


def close_unjudged(tx: Tx, job_ids: Sequence[str]) -> None:
    """Close the audits of jobs that are erased as wrong; delete the digests, and the marks of planted items."""
    for job_id in job_ids:
        for audit in tx.conn.execute(_OPEN_AUDIT, {"audited": job_id}).all():
            tx.conn.execute(_CLOSE_AUDIT, {"audited": job_id, "verdict": True, "at": tx.now})
            tx.conn.execute(_COUNT_CLOSED, {"of_policy": audit.policy, "of_period": audit.period, "more": 1})
    tx.conn.execute(sa.update(budget_audits).where(budget_audits.c.job_id.in_(job_ids)).values(digest=""))
    tx.conn.execute(sa.delete(planted_jobs).where(planted_jobs.c.job_id.in_(job_ids)))


def _count_planted(tx: Tx, job: Job, verb: str) -> None:
    query = sa.delete(planted_jobs).where(planted_jobs.c.job_id == job.id).returning(*planted_jobs.c)
    planted = tx.conn.execute(query).one_or_none()
    if planted is None:
        return
    tx.flush()  # the decision was added in this transaction
    of_round = (decisions.c.job_id == job.id) & (decisions.c.round == job.round)
    decision: Decision = tx.conn.execute(sa.select(decisions.c.decision).where(of_round)).scalar_one()
    caught = tx.caught[job.id, job.round] = is_caught(verb, job.response, planted.digest)
    row = {"policy": planted.policy, "reviewer": decision.reviewer, "judged": 1, "caught": int(caught)}
    statement = insert_into(catch_counts, tx.conn.dialect.name).values(row)
    sums = {name: catch_counts.c[name] + statement.excluded[name] for name in ("judged", "caught")}
    tx.conn.execute(statement.on_conflict_do_update(index_elements=["policy", "reviewer"], set_=sums))


_ASKER = sa.select(events.c.actor).where(events.c.job_id == sa.bindparam("original", type_=sa.Text), events.c.seq == 1)
_LEASE = budget_leases.c.id == sa.bindparam("lease_id", type_=sa.Text)
_LOCK_LEASE = sa.select(budget_leases.c.id).where(_LEASE).with_for_update()
_USE_PASS = sa.update(budget_leases).where(_LEASE).values(used=budget_leases.c.used + 1)
_RETURN_PASS = sa.update(budget_leases).where(_LEASE).values(granted=budget_leases.c.granted - 1)
_PERIOD = (budget_periods.c.policy == sa.bindparam("of_policy", type_=sa.Text)) & (
    budget_periods.c.number == sa.bindparam("of_period", type_=sa.Integer)
)
_COUNT_OPENED = (
    sa.update(budget_periods)
    .where(_PERIOD)
    .values(audits=budget_periods.c.audits + 1, audits_open=budget_periods.c.audits_open + 1)
    .returning(budget_periods.c.terms)
)
_COUNT_CLOSED = (
    sa.update(budget_periods)
    .where(_PERIOD)
    .values(
        audits_open=budget_periods.c.audits_open - 1,
        wrong=budget_periods.c.wrong + sa.bindparam("more", type_=sa.Integer),
    )
)
_IS_OPEN = (budget_audits.c.job_id == sa.bindparam("audited", type_=sa.Text)) & budget_audits.c.is_wrong.is_(None)
_OPEN_AUDIT = (
    sa.select(budget_audits.c.policy, budget_audits.c.period, budget_audits.c.digest, budget_periods.c.terms)
    .select_from(budget_audits)
    .join(
        budget_periods,
        (budget_periods.c.policy == budget_audits.c.policy) & (budget_periods.c.number == budget_audits.c.period),
    )
    .where(_IS_OPEN)
)
_MOVE_AUDIT = sa.update(budget_audits).where(_IS_OPEN).values(job_id=sa.bindparam("new_id", type_=sa.Text))
_CLOSE_AUDIT = (
    sa.update(budget_audits)
    .where(_IS_OPEN)
    .values(
        is_wrong=sa.bindparam("verdict", type_=sa.Boolean),
        closed_at=sa.bindparam("at", type_=sa.BigInteger),
        digest="",  # not needed any more, and without a salt, so that it could confirm a guess of the answer
    )
)
