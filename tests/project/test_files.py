"""The files around the code: version, changelog, decision records, CI, and hooks."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import signoff

ROOT = Path(__file__).resolve().parents[2]
RELEASE = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)
RECORD = re.compile(r"# (\d+)\. .+\n\nDate: \d{4}-\d{2}-\d{2}\n\n## Status\n\n(Accepted|Superseded by)")


def test_the_version_is_written_in_one_place() -> None:
    written = re.compile(rf"version[^0-9A-Za-z]{{1,8}}{re.escape(signoff.__version__)}", re.IGNORECASE)
    files = [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "example.env"]
    files += [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("**/*.md"), *(ROOT / ".github").rglob("*.yml")]
    names = [str(path.relative_to(ROOT)) for path in files if written.search(path.read_text())]
    assert names == ["src/signoff/__init__.py"]


def test_the_changelog_starts_with_unreleased_changes_and_has_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert [version for version, _ in RELEASE.findall(text)] == headings[1:]
    assert signoff.__version__ in headings
    kinds = ["Upgrade", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for section in text.split("\n## ")[1:]:
        subheadings = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert subheadings == sorted(set(subheadings), key=kinds.index)


def test_every_decision_record_has_its_sections_and_is_in_the_index() -> None:
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


def test_the_pipeline_of_ci_only_runs_what_a_user_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    [job] = workflow["jobs"].values()
    assert job["strategy"]["matrix"] == {"python-version": ["3.11", "3.13"]}
    checkout, python, run = job["steps"]
    assert re.fullmatch(r"actions/checkout@v\d+", checkout["uses"])
    assert re.fullmatch(r"actions/setup-python@v\d+", python["uses"])
    assert run.keys() == {"run"}
    assert run["run"].split()[-2:] == ["CI=true", ".ci/run"]


def test_hooks_run_the_locked_tools_and_nothing_from_elsewhere() -> None:
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    programs = [hook["entry"].split()[0] for hook in repository["hooks"]]
    assert set(programs) == {f".venv/bin/{tool}" for tool in ("ruff", "basedpyright", "lint-imports")}
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


def test_issue_forms_can_be_read() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        assert {part["type"] for part in form["body"]} <= {"markdown", "input", "textarea", "dropdown", "checkboxes"}
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(set(ids)) == len(ids)
