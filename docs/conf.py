"""Settings of the documentation's site, which `make docs` builds with Sphinx, MyST and furo.

The source of the site is the whole repository, so that links between its pages are the same here and on GitHub.
"""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from signoff import __version__  # noqa: E402 -- the source is not on the path before

project = "Signoff"
release = __version__
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    *("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "REVIEWING.md", "SECURITY.md"),
]
# Folders without pages are excluded because Sphinx walks through all that are not, `.venv` and its links among them.
exclude_patterns = ["docs/conf.py", "docs/reliability/*.json", "docs/site"]
exclude_patterns += sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs")
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
html_theme = "furo"
html_title = "Signoff"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_use_index = False
smartquotes = False
html_extra_path = ["site"]
html_theme_options = {"top_of_page_buttons": []}

# A heading of `docs/index.md` and the links of its list are a part of the navigation.
PART = re.compile(r"^## (.+)\n\n((?:- \[.*\n)+)", re.MULTILINE)
LINK = re.compile(r"^- \[.*?\]\(([^)#]+)\)", re.MULTILINE)
NAVIGATION_DEPTH = 2
"""Levels of the navigation: the pages of a part, and the decision records below their list."""
BEFORE_THEME = 400
"""Priority of a handler that runs before those of the theme, which have 500."""
RECORDS = """
```{toctree}
:hidden:
:glob:

[0-9]*
```
"""


def setup(app: Sphinx) -> None:
    """Make the navigation from the lists of the index."""
    app.connect("source-read", add_navigation)
    app.connect("html-page-context", limit_navigation, priority=BEFORE_THEME)


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the tables of contents to the index and to the list of decision records."""
    if name == root_doc:
        source[0] += "\n".join(table(title, LINK.findall(links)) for title, links in PART.findall(source[0]))
    if name == "docs/decisions/README":
        source[0] += RECORDS


def table(title: str, pages: list[str]) -> str:
    """Return the table of contents of a part."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""])


def limit_navigation(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Let the navigation of a page have as many levels as there are.

    The theme asks for all levels, and of the titles alone. Sphinx then copies the headings of all pages for each page,
    before it drops them, which takes a third of the time of the whole build.
    """
    del app, page, template, doctree
    if "toctree" in context:
        toctree = context["toctree"]
        context["toctree"] = lambda **options: toctree(**(options | {"maxdepth": NAVIGATION_DEPTH}))
