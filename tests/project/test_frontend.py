"""The packages of the pages: locked, with hashes, and from no registry in particular."""

from __future__ import annotations

import json
import re
from pathlib import Path

from signoff.core import printable

FRONTEND = Path(__file__).parents[2] / "frontend"


def test_every_package_is_locked_with_its_hash_and_without_an_address() -> None:
    text = (FRONTEND / "package-lock.json").read_text()
    packages = {name: package for name, package in json.loads(text)["packages"].items() if name}
    assert len(packages) > 20
    assert all(re.fullmatch(r"sha512-[\w+/=]+", package["integrity"]) for package in packages.values())
    assert not any("resolved" in package for package in packages.values())


def test_a_package_is_named_with_its_exact_version() -> None:
    package = json.loads((FRONTEND / "package.json").read_text())
    versions = [*package["dependencies"].values(), *package["devDependencies"].values()]
    assert [version for version in versions if not re.fullmatch(r"\d+\.\d+\.\d+", version)] == []


def test_the_editors_mark_the_characters_that_the_pages_mark() -> None:
    text = (FRONTEND / "src" / "unseen.js").read_text()
    classes = dict(re.findall(r"const ([A-Z]+) = String.raw`(.*)`;", text))
    for name, ranges in classes.items():
        of_page = re.sub(r"\\U000([0-9a-f]{5})", r"\\u{\1}", getattr(printable, f"_{name}"))
        assert ranges == of_page.replace("u{0", "u{"), name
    assert len(classes) == 4
