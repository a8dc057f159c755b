"""Texts of callers and of models on every page: shown as text, whatever is in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from html.parser import HTMLParser

import pytest

from signoff.core.access import Caller
from signoff.dashboard.shell import pages_of
from support.live_server import chat, live
from support.pages import Browser, signed_in

pytestmark = pytest.mark.anyio
ADMIN = Caller(user_id=1, token_id=1, role="admin", email="admin@example.com")
HOSTILE = {
    "markup": '<img src=x onerror="alert(1)">',
    "quotes": "\"'><script>alert(1)</script>",
    "direction": "\u202egnihtemos\u202c \u200f<b>",
}
UNSEEN = {"RIGHT-TO-LEFT OVERRIDE": 0x202E, "POP DIRECTIONAL FORMATTING": 0x202C, "RIGHT-TO-LEFT MARK": 0x200F}
DETAILS = {
    "job": "/dashboard/jobs/{job}",
    "held job": "/dashboard/review/{held}",
    "playground": "/dashboard/playground?job={job}",
    "search": "/dashboard/jobs?q={text}",
    "views": "/dashboard/jobs",
    "policy": "/dashboard/policies/hostile",
    "model": "/dashboard/models/hostile",
    "prompt": "/dashboard/prompts/hostile_prompt",
    "audit": "/dashboard/audit?actor={text}",
    "limit": "/dashboard/limits?who={text}&model={text}",
}
PATHS = DETAILS | {each.name: each.path for each in pages_of(ADMIN)}


class Site:
    """A server whose jobs, names and settings are full of hostile texts, and the browser of an admin."""

    def __init__(self, admin: Browser, names: dict[str, str]) -> None:
        self.admin = admin
        self.names = names


class Elements(HTMLParser):
    """Elements of a page with their attributes, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.parsed = list[tuple[str, dict[str, str | None]]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Add an element."""
        self.parsed.append((tag, dict(attrs)))


@pytest.fixture(scope="module", name="site")
async def fill_site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    texts, name = " ".join(HOSTILE.values()), f"m {HOSTILE['markup']} {HOSTILE['quotes']}"  # names are printable
    async with live(tmp_path_factory.mktemp("hostile"), log_before_answer=True) as server:
        admin = await signed_in(server, "admin", "o'hara")
        await server.model("hostile")
        await server.model(name, kind="openai", url="http://127.0.0.1:9", attempts=1)
        rule = {"if": "answer.text.contains('<img src=x>')", "then": "reject", "code": "no", "message": texts}
        await admin.api("PUT", "/api/policies/hostile", json={"target": "hostile", "rules": [rule]})
        await admin.api(
            "POST", "/api/prompts", status=201, json={"name": "hostile_prompt", "body": texts, "model": "hostile"}
        )
        await admin.api("POST", "/api/tokens", status=201, json={"name": texts})
        await admin.api("PUT", "/api/limits/all", json={"parallel": 50})
        await admin.submit("/dashboard/jobs/views", name=HOSTILE["quotes"], query="status=fail")
        url = f"{server.url}/v1/chat/completions"
        async with server.http.post(url, json=chat(texts, "hostile"), headers=admin.headers) as response:
            job = response.headers["x-signoff-job"]
        await server.ask("POST", "/v1/chat/completions", headers=admin.headers, json=chat(texts, name))
        held = (await admin.api("POST", "/enqueue", json={"model": "echo", "input": texts}))["job_id"]
        token = await server.token("admin", "reader@example.com")
        await server.job_when(token, held, lambda each: each["status"] == "human")
        yield Site(admin, {"job": job, "held": held, "text": "%22%3E%3Cimg src=x onerror=alert(1)%3E"})


@pytest.mark.parametrize("name", sorted(PATHS))
async def test_no_page_takes_a_text_for_markup(site: Site, name: str) -> None:
    page = await site.admin.open(PATHS[name].format(**site.names))
    elements = Elements()
    elements.feed(page)
    names = [tag for tag, _ in elements.parsed]
    assert "html" in names
    assert not {"img", "b", "iframe"} & set(names)
    assert all(attributes.get("src") for tag, attributes in elements.parsed if tag == "script")
    assert not [name for _, attributes in elements.parsed for name in attributes if name.startswith("on")]


async def test_a_text_is_shown_whole_where_it_belongs(site: Site) -> None:
    page = await site.admin.open(DETAILS["job"].format(**site.names))
    for text in HOSTILE.values():
        shown = (
            text.replace("&", "&amp;")
            .replace("<", "&lt;")
            .replace(">", "&gt;")
            .replace('"', "&#34;")
            .replace("'", "&#39;")
        )
        for name, code in UNSEEN.items():
            mark = f'<span class="unseen" title="{name}">⟨U+{code:04X}⟩</span>'
            shown = shown.replace(chr(code), mark)
        assert shown in page
