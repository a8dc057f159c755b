"""The tables of named review policies. Versions stay when their policy is deleted, as jobs are still judged by them."""

import sqlalchemy as sa

from signoff.core.reviews.rules import ReviewPolicy
from signoff.stores.json_column import JsonColumn
from signoff.stores.metadata import metadata

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("target", sa.Text, nullable=False, unique=True),
    sa.Column("version", sa.Integer, nullable=False),
)

policy_versions = sa.Table(
    "policy_versions",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("policy", JsonColumn(ReviewPolicy), nullable=False),
)
