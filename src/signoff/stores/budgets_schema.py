"""The tables of error budgets and planted items."""

import sqlalchemy as sa

from signoff.core.reviews.budget_period import BudgetTerms
from signoff.stores.json_column import JsonColumn
from signoff.stores.metadata import metadata

# The newest period of each policy, which is the present one of a budget without groups. Whoever takes passes or begins
# a period locks this row first.
budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("policy", sa.Text, primary_key=True),
    sa.Column("period", sa.Integer, nullable=False),
)

# The present period of each group.
budget_groups = sa.Table(
    "budget_groups",
    metadata,
    sa.Column("policy", sa.Text, primary_key=True),
    sa.Column("group", sa.Text, primary_key=True),
    sa.Column("period", sa.Integer, nullable=False),
)

budget_periods = sa.Table(
    "budget_periods",
    metadata,
    sa.Column("policy", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("group", sa.Text),
    sa.Column("terms", JsonColumn(BudgetTerms), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("catch_rate", sa.Float),
    # Without the used passes of leases that are still in `budget_leases`.
    sa.Column("delivered", sa.BigInteger, nullable=False),
    sa.Column("audits", sa.BigInteger, nullable=False),
    sa.Column("audits_open", sa.BigInteger, nullable=False),
    sa.Column("wrong", sa.BigInteger, nullable=False),
    sa.Column("started_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
)

budget_leases = sa.Table(
    "budget_leases",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("period", sa.Integer, nullable=False),
    sa.Column("granted", sa.Integer, nullable=False),
    sa.Column("used", sa.Integer, nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
)
sa.Index("budget_leases_by_period", budget_leases.c.policy, budget_leases.c.period)

budget_audits = sa.Table(
    "budget_audits",
    metadata,
    # The job that reviewers see: the one of the answer, or the copy of it once it is cancelled.
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("period", sa.Integer, nullable=False),
    sa.Column("coin", sa.Float, nullable=False),
    sa.Column("rate", sa.Float, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("is_wrong", sa.Boolean),
    sa.Column("opened_at", sa.BigInteger, nullable=False),
    sa.Column("closed_at", sa.BigInteger),
)

planted_items = sa.Table(
    "planted_items",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("response", sa.LargeBinary, nullable=False),
    sa.Column("presented_at", sa.BigInteger, nullable=False),
)
sa.Index("planted_items_by_policy", planted_items.c.policy, planted_items.c.presented_at, planted_items.c.id)

# Jobs that present a planted item and have no verdict yet.
planted_jobs = sa.Table(
    "planted_jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
)

catch_counts = sa.Table(
    "catch_counts",
    metadata,
    sa.Column("policy", sa.Text, primary_key=True),
    sa.Column("reviewer", sa.Text, primary_key=True),
    sa.Column("judged", sa.BigInteger, nullable=False),
    sa.Column("caught", sa.BigInteger, nullable=False),
)
