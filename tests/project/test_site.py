"""The site of the documentation: it is built without a warning, and needs nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"""<(?:script|img|iframe|link(?! rel="(?:canonical|next|prev|index|search|author)"))\b[^>]*?
    (?:src|href)="(?:https?:)?//[^"]*\"""",
    re.VERBOSE,
)
IMPORTED = re.compile(r"""(?:url\(|@import )["']?(?:https?:)?//""")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", tmp_path / "doctrees"]
    result = subprocess.run([*command, ".", site], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    assert len(pages) > 100
    assert "docs/index.html" in pages[site / "index.html"]
    assert [(page.name, tag[0]) for page, text in pages.items() if (tag := LOADED.search(text))] == []
    styles = {sheet: sheet.read_text() for sheet in site.rglob("*.css")}
    assert len(styles) > 2
    assert [sheet.name for sheet, text in styles.items() if IMPORTED.search(text)] == []
    navigation = re.findall(r'class="caption"[^>]*>.*?"caption-text">(.*?)<', pages[site / "docs" / "index.html"])
    for part in ("Quick start", "Tutorials", "How-to guides", "Reviewer's guide", "Reference", "Explanation"):
        assert part in navigation


def test_what_a_page_would_load_from_elsewhere_is_noticed() -> None:
    for tag in (
        '<script src="https://x/y.js">',
        '<img alt="" src="//x/y.png">',
        '<link rel="stylesheet" href="http://x">',
    ):
        assert LOADED.search(tag), tag
    assert not LOADED.search('<script src="_static/y.js">')
    assert IMPORTED.search("@import 'https://x/y.css'")
