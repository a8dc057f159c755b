"""The entry point of Alembic, which runs the migrations on the connection in its configuration."""

from alembic import context

from signoff.stores.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
