"""The files around the code: version, changelog, decision records, CI, and hooks."""

from __future__ import annotations

import re
from pathlib import Path

import signoff

ROOT = Path(__file__).resolve().parents[1]
RELEASE = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)
RECORD = re.compile(r"# (\d+)\. .+\n\nDate: \d{4}-\d{2}-\d{2}\n\n## Status\n\n(Accepted|Superseded by)")


def test_the_version_is_written_in_one_place() -> None:
    written = re.compile(rf"version[^0-9A-Za-z]{{1,8}}{re.escape(signoff.__version__)}", re.IGNORECASE)
    files = [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "example.env"]
    files += [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("**/*.md"), *(ROOT / ".github").rglob("*.yml")]
    places = [str(path.relative_to(ROOT)) for path in files if written.search(path.read_text())]
    assert places == ["src/signoff/__init__.py"]


def test_the_changelog_starts_with_unreleased_changes_and_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert [version for version, _ in RELEASE.findall(text)] == headings[1:]
    assert signoff.__version__ in headings
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_decision_record_has_its_parts_and_stands_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    records = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    for number, path in enumerate(records, start=1):
        text = path.read_text()
        head = RECORD.match(text)
        assert head is not None, path.name
        assert int(head[1]) == int(path.name[:3]) == number
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Status", "Context", "Decision", "Consequences"]
        assert f"[{text.partition(chr(10))[0][2:]}]({path.name})" in index
