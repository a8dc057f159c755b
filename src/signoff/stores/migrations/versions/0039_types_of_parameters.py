"""Name the types of the parameters of functions as JSON Schema does."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0039"
down_revision = "0038"

NEW_NAMES = {"text": "string", "whole": "integer", "truth": "boolean", "list": "array"}


def upgrade() -> None:
    """Rename the types; code of the release before does not use those that are stored."""
    functions = sa.table("functions", sa.column("name", sa.Text), sa.column("function", sa.LargeBinary))
    connection = op.get_bind()
    for name, text in connection.execute(sa.select(functions.c.name, functions.c.function)).all():
        function = json.loads(text)
        for param in function.get("params", ()):
            old_name = param.pop("reads", "any")
            param["type"] = NEW_NAMES.get(old_name, old_name)
        update = sa.update(functions).where(functions.c.name == name)
        connection.execute(update.values(function=json.dumps(function, separators=(",", ":")).encode()))
