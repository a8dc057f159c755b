"""Migrations expand, then contract: each new one leaves what the last release needs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import sqlalchemy as sa

from signoff.stores import migrations
from signoff.stores.migrations import migrate_schema
from support.database_files import make_file
from support.revisions import NEWEST, add_revision
from upgrades.last_release import NAMED_IN
from upgrades.schema_rules import Table, contractions, tables_of

pytestmark = [
    # SQLAlchemy cannot read these back from SQLite; none of them is unique.
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
]

# The rule holds for what comes after this revision.
FIRST_RULED = migrations._FIRST_COMPATIBLE
LAST_SCHEMA = tomllib.loads(NAMED_IN.read_text())["schema"]

EXPANSIONS = {
    "a table": "op.create_table('nicknames', sa.Column('name', sa.Text, nullable=False))",
    "a column that may be null": "op.add_column('jobs', sa.Column('nickname', sa.Text))",
    "a column with a default": "op.add_column('jobs', sa.Column('x', sa.Text, nullable=False, server_default='y'))",
    "an index": "op.create_index('jobs_by_target', 'jobs', ['target'])",
    "another index": "op.execute('DROP INDEX jobs_by_status')",
    "a unique index of a new column": (
        "op.add_column('jobs', sa.Column('nickname', sa.Text)); "
        "op.create_index('jobs_by_nickname', 'jobs', ['nickname'], unique=True)"
    ),
}
CONTRACTIONS = {
    "drops the table saved_views": "op.drop_table('saved_views')",
    "drops the column jobs.seq": "op.drop_column('jobs', 'seq')",
    "drops the column jobs.lane": "op.alter_column('jobs', 'lane', new_column_name='way')",
    "adds the column prices.x, which is NOT NULL": "op.execute('ALTER TABLE prices ADD COLUMN x TEXT NOT NULL')",
    "changes the type of saved_views.query": (
        "op.execute('ALTER TABLE saved_views DROP COLUMN query'); "
        "op.add_column('saved_views', sa.Column('query', sa.Integer, nullable=False))"
    ),
    "makes review_hours.prompt NOT NULL": (
        "with op.batch_alter_table('review_hours') as table: "
        "table.alter_column('prompt', nullable=False, existing_type=sa.Text)"
    ),
    "adds to jobs what older code may break (unique)": (
        "op.create_index('one_target', 'jobs', ['target', 'id'], unique=True)"
    ),
}


def around(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Table]]:
    """Return the tables before and after a migration of the newest schema with this line of code."""
    make_file(tmp_path / "signoff.db")
    add_revision(monkeypatch, tmp_path / "migrations", change)
    return shapes(tmp_path / "signoff.db", NEWEST, "next")


def shapes(path: Path, *revisions: str) -> list[dict[str, Table]]:
    """Return the tables of a SQLite file after each of these revisions."""
    engine, tables = sa.create_engine(f"sqlite:///{path}"), list[dict[str, Table]]()
    for revision in revisions:
        with engine.begin() as conn:
            migrate_schema(conn, revision)
            tables.append(tables_of(conn))
    engine.dispose()
    return tables


def test_each_new_migration_leaves_what_the_release_before_needs(tmp_path: Path) -> None:
    ruled = [revision for revision in migrations._REVISIONS if revision >= FIRST_RULED]
    tables = shapes(tmp_path / "signoff.db", *ruled)
    for number, revision in enumerate(ruled[1:], 1):
        phrases = contractions(tables[number - 1], tables[number])
        if revision not in migrations._CONTRACTIONS:
            assert phrases == [], f"{revision} is no expansion: see docs/decisions/050, or name it in _CONTRACTIONS"


def test_a_contraction_names_an_expansion_that_was_released_before() -> None:
    for revision, oldest in migrations._CONTRACTIONS.items():
        assert revision in migrations._REVISIONS
        assert oldest in migrations._REVISIONS
        assert oldest < revision
        assert oldest <= LAST_SCHEMA, f"{revision} contracts what no release has expanded: the last has {LAST_SCHEMA}"


@pytest.mark.parametrize("change", EXPANSIONS.values(), ids=EXPANSIONS)
def test_an_expansion_is_found_to_be_one(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = around(change, tmp_path, monkeypatch)
    assert contractions(before, after) == []


@pytest.mark.parametrize(("phrase", "change"), CONTRACTIONS.items(), ids=CONTRACTIONS)
def test_a_contraction_is_found(phrase: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = around(change, tmp_path, monkeypatch)
    assert any(each.startswith(phrase) for each in contractions(before, after))
