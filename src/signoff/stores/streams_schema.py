"""The tables of streams that were declared at run time, and of the leads of exclusive ones."""

import sqlalchemy as sa

from signoff.core.stream import Stream
from signoff.stores.json_column import JsonColumn
from signoff.stores.metadata import metadata

streams = sa.Table(
    "streams",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("stream", JsonColumn(Stream), nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

stream_leads = sa.Table(
    "stream_leads",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
)
