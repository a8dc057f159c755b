"""A version of the program whose schema is one revision newer than this one."""

from pathlib import Path

import pytest

from signoff.stores import migrations

NEWEST = migrations._REVISIONS[-1]


def add_revision(monkeypatch: pytest.MonkeyPatch, folder: Path, *upgrade: str) -> None:
    """Add the revision `next`, with these lines of code as its upgrade, to a copy of the migrations in `folder`."""
    home = Path(migrations.__file__).parent
    (folder / "versions").mkdir(parents=True)
    for path in (home / "env.py", *(home / "versions").glob("*.py")):
        (folder / path.relative_to(home)).write_bytes(path.read_bytes())
    lines = "".join(f"    {line}\n" for line in upgrade)
    (folder / "versions" / "nicknames.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision, branch_labels, depends_on = 'next', {NEWEST!r}, None, None\n"
        f"def upgrade():\n{lines}"
    )
    monkeypatch.setattr(migrations, "_FOLDER", folder)
    monkeypatch.setattr(migrations, "_REVISIONS", [*migrations._REVISIONS, "next"])
