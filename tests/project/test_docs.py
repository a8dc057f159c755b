"""Agreement of the documentation with the code, and of its links with their targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pages import FILES, PARTS, ROOT, written

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEST = re.compile(r"`(\w+(?:/\w+)*\.py)::(test_\w+)`")
CODE = re.compile(r"```.*?```", re.DOTALL)
MAX_GLOSSARY_ENTRIES = 25
MAX_PROSE_CHARACTERS = 140
GUIDES = [ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING", "REVIEWING", "SECURITY")]


@pytest.mark.parametrize(("page", "part"), PARTS)
def test_a_generated_page_is_up_to_date(page: str, part: str) -> None:
    assert (ROOT / page).read_text() == written(page, part, PARTS[page, part]()), "run: make pages"


@pytest.mark.parametrize("file", FILES)
def test_a_generated_file_is_up_to_date(file: str) -> None:
    assert (ROOT / file).read_text() == FILES[file](), "run: make pages"


def test_each_link_leads_to_a_file_and_to_a_heading_in_it() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text()))]
    assert len(links) > 100
    dead = [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not has_target(page, link)]
    assert dead == []


def has_target(page: Path, link: str) -> bool:
    """Return True for an address on the web, and for a file that exists and has the heading that the link names."""
    if re.match(r"https?://", link):
        return True
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of `page`."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_line_of_prose_is_short() -> None:
    """Tables, headings and code are no prose, records of decisions are not rewritten, and of a link its text counts."""
    records = ROOT / "docs" / "decisions"
    pages = [page for page in (*PAGES, *GUIDES) if page.parent != records]
    lines = [(page, line) for page in pages for line in CODE.sub("", page.read_text()).splitlines()]
    prose = [
        (page, re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line)) for page, line in lines if line[:1] not in {"|", "#"}
    ]
    assert len(prose) > 3000
    long = [f"{page.relative_to(ROOT)}: {line}" for page, line in prose if len(line) > MAX_PROSE_CHARACTERS]
    assert long == []


def test_the_glossary_is_short_and_has_a_line_for_each_word() -> None:
    lines = (ROOT / "docs" / "glossary.md").read_text().splitlines()
    words = [line for line in lines if line.startswith("- ")]
    assert 0 < len(words) <= MAX_GLOSSARY_ENTRIES
    assert [line for line in words if not re.match(r"- \*\*[a-z-]+\*\*: .+\.$", line)] == []


def test_each_page_is_on_the_index_or_in_the_contributors_guide() -> None:
    index, guide = (ROOT / "docs" / "index.md").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    missing = {page for page in pages if f"]({page})" not in index and f"](docs/{page})" not in guide}
    assert {page for page in missing if not page.startswith("decisions/")} == {"index.md"}


def test_each_table_has_a_header() -> None:
    generated = re.compile(r"<!-- rounds -->.*<!-- /rounds -->", re.DOTALL)
    tables = [
        (page, table.splitlines())
        for page in PAGES
        for table in re.findall(r"(?:^\|.*\n)+", generated.sub("", CODE.sub("", page.read_text())), re.MULTILINE)
    ]
    assert len(tables) > 50
    headless = [
        f"{page.name}: {head}"
        for page, (head, rule, *_) in tables
        if not re.fullmatch(r"\|(-+\|)+", rule) or not re.search(r"\w", head)
    ]
    assert headless == []


def test_each_threat_names_a_test_and_each_test_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    threats = re.findall(r"^\| (?!threat |-).*$", page.partition("\n## Threats")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(threats) > 50
    assert [threat for threat in threats if not TEST.search(threat)] == []
    assert page.count("::") == len(TEST.findall(page))
    assert [name for name in TEST.findall(page) if not has_test(*name)] == []


def has_test(file: str, name: str) -> bool:
    """Return True if the file below `tests/` defines a test of this name."""
    path = ROOT / "tests" / file
    return path.exists() and re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE) is not None


def test_a_test_that_does_not_exist_is_noticed() -> None:
    assert has_test("project/test_docs.py", "test_a_test_that_does_not_exist_is_noticed")
    assert not has_test("project/test_docs.py", "test_a_test_that_does_not_exist")
    assert not has_test("project/test_doc.py", "test_a_test_that_does_not_exist_is_noticed")
