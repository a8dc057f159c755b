"""The playground without JavaScript; the tests in a browser try the streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from signoff.doors.router import MAX_PAGES
from support.live_server import Live, chat, live, until
from support.pages import Browser, signed_in, words

pytestmark = pytest.mark.anyio

# Less than a page that waited for an answer took, and more than a slow machine needs for pages that do not wait.
PAGES_SECONDS = 15


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("playground"), log_before_answer=True) as server:
        await server.model("other")
        yield server


def text_of(page: str, side: str) -> str:
    """Return the answer on one side of the page."""
    return words(page.partition(f'id="text-{side}">')[2].partition("</p>")[0])


def field(page: str, name: str) -> str:
    """Return the text of a field with several lines."""
    return page.partition(f'name="{name}"')[2].partition(">\n")[2].partition("</textarea>")[0]


async def jobs_at(user: Browser, location: str) -> dict[str, Any]:
    """Return the jobs whose answers the address shows, by their side."""
    query = parse_qs(urlsplit(location).query)
    return {side: await user.api("GET", f"/api/jobs/{ids[0]}") for side, ids in query.items()}


async def ended(user: Browser, location: str) -> None:
    """Wait until the jobs have ended whose answers the address shows."""

    async def have_ended() -> bool | None:
        jobs = (await jobs_at(user, location)).values()
        return all(job["status"] == "success" for job in jobs) or None

    await until(have_ended)


async def test_two_targets_answer_side_by_side_as_jobs_of_the_caller(server: Live) -> None:
    user = await signed_in(server, "user", "player")
    form = {
        "left": "echo",
        "right": "other",
        "system": "Be <b>brief</b>",
        "message": "Hi\r\nthere",
        "temperature": "0.5",
    }
    location = await user.submit("/dashboard/playground", **form)
    await ended(user, location)
    page = await user.open(location)
    assert (text_of(page, "left"), text_of(page, "right")) == ("Hi there", "Hi there")
    assert field(page, "system") == "Be &lt;b&gt;brief&lt;/b&gt;"
    assert field(page, "message") == "Hi\nthere"
    assert 'name="right" value="other"' in page

    jobs = await jobs_at(user, location)
    assert jobs["right"]["payload"]["model"] == "other"
    assert jobs["left"]["payload"] == {
        "model": "echo",
        "messages": [{"role": "system", "content": form["system"]}, {"role": "user", "content": "Hi\nthere"}],
        "temperature": 0.5,
    }
    before = len(await user.api("GET", "/jobs"))
    await user.open(location)
    assert len(await user.api("GET", "/jobs")) == before, "a reload asks nobody again"


async def test_a_job_is_opened_with_all_of_its_request(server: Live) -> None:
    user = await signed_in(server, "user", "opener")
    several = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "3"},
    ]
    for body, name in ((chat("plain", temperature=1), "message"), ({"model": "echo", "messages": several}, "body")):
        async with server.http.post(f"{server.url}/v1/chat/completions", json=body, headers=user.headers) as response:
            job_id = response.headers["x-signoff-job"]
        assert f'href="/dashboard/playground?job={job_id}"' in await user.open(f"/dashboard/jobs/{job_id}")
        page = await user.open(f"/dashboard/playground?job={job_id}")
        assert 'name="left" value="echo"' in page
        location = await user.submit(
            "/dashboard/playground",
            left="other",
            message=field(page, "message"),
            body=field(page, "body").replace("&#34;", '"'),
            temperature="1" if name == "message" else "",
        )
        payload = (await jobs_at(user, location))["left"]["payload"]
        assert payload == body | {"model": "other"}
    stranger = await signed_in(server, "user", "stranger")
    await stranger.open(f"/dashboard/playground?job={job_id}", status=404)
    await stranger.open(f"/dashboard/playground?left={job_id}", status=404)


@pytest.mark.parametrize(
    ("form", "fault"),
    [
        ({"left": "", "message": "x"}, "`left` must be the name"),
        ({"left": "echo", "message": " "}, "`message` must not be empty"),
        ({"left": "echo", "message": "x", "temperature": "hot"}, "`temperature` must be a number"),
        ({"left": "echo", "body": '{"messages": [\n}'}, "`body` is not JSON at line 2, column 1"),
        ({"left": "echo", "body": "[1]"}, "`body` must be a JSON object"),
        ({"left": "nowhere", "message": "x"}, "nowhere"),
    ],
)
async def test_a_fault_is_shown_and_what_was_typed_stays(server: Live, form: dict[str, str], fault: str) -> None:
    user = await signed_in(server, "user", "faulty")
    page = await user.submit("/dashboard/playground", status=404 if "nowhere" in fault else 400, **form)
    alert = words(page.partition('role="alert">')[2].partition("</p>")[0])
    assert fault in alert.replace("&#39;", "'")
    assert f'name="left" value="{form["left"]}"' in page


async def test_pages_of_answers_that_do_not_come_block_no_other_page(server: Live) -> None:
    user = await signed_in(server, "user", "patient")
    location = await user.submit("/dashboard/playground", left="echo/hang", right="echo/hang", message="x")
    address = location.partition("#")[0]
    async with asyncio.timeout(PAGES_SECONDS):
        pages = await asyncio.gather(*(user.open(address) for _ in range(MAX_PAGES + 1)), user.open("/dashboard/jobs"))
    assert text_of(pages[0], "left") == "There is no answer yet. Look again"
    assert f'hx-get="{address.replace("&", "&amp;")}" hx-trigger="every 2s" hx-select="#card-left"' in pages[0]
    assert f'<a href="{address.replace("&", "&amp;")}">Look again</a>' in pages[0]
    for job_id in parse_qs(urlsplit(location).query).values():
        await user.submit(f"/dashboard/jobs/{job_id[0]}/cancel")
    assert "hx-get" not in (await user.open(address)).partition('id="answers"')[2]


async def test_a_held_answer_is_not_shown_and_another_site_cannot_ask(server: Live) -> None:
    user = await signed_in(server, "user", "waiting")
    await server.model("reviewed", review="always")
    location = await user.submit("/dashboard/playground", left="reviewed", message="a secret answer")
    job_id = parse_qs(urlsplit(location).query)["left"][0]
    token = await server.token("admin", "reader@example.com")
    await server.job_when(token, job_id, lambda job: job["status"] == "human")
    page = await user.open(f"/dashboard/playground?job={job_id}")
    assert field(page, "message") == "a secret answer"
    await user.submit("/dashboard/playground", status=403, headers={"sec-fetch-site": "cross-site"}, left="echo")
