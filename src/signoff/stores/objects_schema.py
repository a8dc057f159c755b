"""The tables of objects that upstreams store."""

import sqlalchemy as sa

from signoff.stores.metadata import metadata

# Parts of answers, such as the items of a response. The object of the answer itself is in `jobs` or `calls`.
created_objects = sa.Table(
    "created_objects",
    metadata,
    sa.Column("object_id", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, nullable=False, index=True),
)

held_objects = sa.Table(
    "held_objects",
    metadata,
    sa.Column("object_id", sa.Text, primary_key=True),
    sa.Column("held_at", sa.BigInteger, nullable=False),
)
