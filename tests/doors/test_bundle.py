"""The bundled scripts of the pages: where they are, and what a checkout without them does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import structlog

from doors.test_session import session_headers
from signoff.dashboard import bundle as bundle_module
from signoff.dashboard.bundle import BUILT, NOT_BUILT, bundle, static_hash
from signoff.server.start_warnings import log_page_warnings
from support.live_server import live

pytestmark = pytest.mark.anyio


async def test_a_script_is_kept_for_good_as_its_name_has_the_hash_of_its_content(tmp_path: Path) -> None:
    assert bundle().keys() >= {"page.js", "desk.js", "editor.js", "charts.js"}
    async with live(tmp_path) as server:
        for name in bundle().values():
            async with server.http.get(f"{server.url}/static/built/{name}") as response:
                assert response.status == 200
                assert response.headers["cache-control"] == "max-age=31536000, public, immutable"
        for path in ("/static/tokens.css", "/static/built/LICENSES.txt"):
            assert (await server.ask("GET", path))[0] == 200
        assert (await server.ask("GET", "/static/built/none.js"))[0] == 404


async def test_a_style_sheet_is_kept_for_good_as_its_address_has_the_hash_of_its_content(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        _, page = await server.ask("GET", "/dashboard/usage", headers=await session_headers(server))
        links = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
        assert len(links) >= 6
        for link in links:
            async with server.http.get(server.url + link) as response:
                assert response.status == 200, link
                assert response.headers["cache-control"] == "max-age=31536000, public, immutable", link
        assert (await server.ask("GET", f"/static/{'0' * 16}/tokens.css"))[0] == 404


def test_the_hash_changes_with_any_style_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = set[str]()
    monkeypatch.setattr(bundle_module, "STATIC", tmp_path)
    for name, text in (("a.css", "a{}"), ("a.css", "b{}"), ("b.css", "c{}")):
        (tmp_path / name).write_text(text)
        static_hash.cache_clear()
        hashes.add(static_hash())
    static_hash.cache_clear()
    assert len(hashes) == 3


def test_the_notices_of_all_bundled_packages_lie_beside_the_bundle() -> None:
    notices = (BUILT / "LICENSES.txt").read_text()
    for package in ("htmx.org", "uplot", "@lezer/json"):
        assert re.search(rf"^{package} [\d.]+ \([\w-]+\)$", notices, re.MULTILINE), package


async def test_without_the_bundle_pages_have_no_scripts_and_the_start_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "BUILT", tmp_path)
    async with live(tmp_path) as server:
        status, page = await server.ask("GET", "/dashboard/review", headers=await session_headers(server))
    assert (status, "<script" in page) == (200, False)
    with structlog.testing.capture_logs() as logs:
        log_page_warnings()
    assert [(each["log_level"], each["remedy"]) for each in logs] == [("warning", NOT_BUILT)]
