"""The last release: where it is missing, the message says how to get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from upgrades.last_release import NotBuiltError, Release, _check_out, last_release


def test_a_clone_without_the_commit_of_the_last_release_says_how_to_fetch_it(tmp_path: Path) -> None:
    release = Release("0" * 40, "0001", starts_with_newer_schema=True, folder=tmp_path / "release")
    with pytest.raises(NotBuiltError, match=rf"git fetch --depth 1 origin {release.commit} .*--unshallow"):
        _check_out(release)
    assert not release.folder.exists()


@pytest.mark.long
def test_the_last_release_has_the_schema_that_is_said_of_it() -> None:
    release = last_release()
    versions = release.folder / "source" / "src" / "signoff" / "stores" / "migrations" / "versions"
    assert max(path.name.partition("_")[0] for path in versions.glob("[0-9]*.py")) == release.schema
