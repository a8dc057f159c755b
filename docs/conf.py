"""Settings of the documentation's site, which `make docs` builds with Sphinx, MyST and furo.

The source of the site is the whole repository, so that links between its pages are the same here and on GitHub.
"""

import re
import sys
from pathlib import Path

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
exclude_patterns = ["docs/conf.py", "docs/reliability/*.json", "docs/site"]
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


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the tables of contents to the index and to the list of decision records."""
    if name == root_doc:
        source[0] += "\n".join(table(title, LINK.findall(links)) for title, links in PART.findall(source[0]))
    if name == "docs/decisions/README":
        source[0] += RECORDS


def table(title: str, pages: list[str]) -> str:
    """Return the table of contents of a part."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""])
