"""Alembic's entry: runs the migrations on the connection that was handed in."""

from alembic import context

from signoff.stores.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
