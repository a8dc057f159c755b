"""The page of limits."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from support.live_server import Live, chat, live
from support.pages import cells, signed_in, words

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("limits")) as server:
        yield server


async def test_a_limit_is_set_changed_and_deleted_on_the_page(server: Live) -> None:
    admin = await signed_in(server, "admin", "limiter")
    form = {"who": "user:limiter@example.com", "model": "echo", "requests_per_minute": "1,000", "cost_per_day": "2.50"}
    assert await admin.submit("/dashboard/limits", **form) == "/dashboard/limits"
    [limit] = (await admin.api("GET", "/api/limits"))["data"]
    assert (limit["who"], limit["model"], limit["requests_per_minute"]) == (form["who"], "echo", 1000)
    assert (limit["cost_per_day"], limit["tokens_per_day"]) == ("2.5", None)

    page = await admin.open("/dashboard/limits?who=user:limiter@example.com&model=echo")
    assert 'name="requests_per_minute" value="1000"' in page
    assert 'name="cost_per_day" value="2.5"' in page
    await admin.submit("/dashboard/limits", **(form | {"parallel": "3"}))
    [limit] = (await admin.api("GET", "/api/limits"))["data"]
    assert limit["parallel"] == 3

    await admin.submit("/dashboard/limits/delete", who=form["who"], model="echo")
    assert (await admin.api("GET", "/api/limits"))["data"] == []
    history = await admin.open("/dashboard/audit?actor=user:limiter@example.com")
    assert "limit removed" in history
    assert "<ins>$2.5</ins>" in history


@pytest.mark.parametrize(
    ("form", "fault"),
    [
        ({"who": "somebody", "parallel": "1"}, "`who` must be all, each"),
        ({"who": "user:nobody@example.com", "parallel": "1"}, "There is no user"),
        ({"who": "all", "parallel": "-1"}, "`parallel` must be a whole number"),
        ({"who": "all", "cost_per_day": "much"}, "`cost_per_day` is not valid"),
        ({"who": "all"}, "needs at least one of"),
    ],
)
async def test_a_fault_is_shown_above_the_form_as_it_was_filled_in(
    server: Live, form: dict[str, str], fault: str
) -> None:
    admin = await signed_in(server, "admin", "faulty")
    page = await admin.submit("/dashboard/limits", status=404 if "no user" in fault else 400, **form)
    assert fault in words(page.partition('role="alert">')[2].partition("</p>")[0])
    assert all(f'value="{value}"' in page for value in form.values())


async def test_the_page_shows_what_is_used_when_it_is_free_and_who_was_refused(server: Live) -> None:
    admin, user = await signed_in(server, "admin", "watcher"), await signed_in(server, "user", "eager")
    form = {"who": "user:eager@example.com", "requests_per_minute": "2", "tokens_per_day": "100000"}
    await admin.submit("/dashboard/limits", **form)
    statuses = [
        (await server.ask("POST", "/v1/chat/completions", headers=user.headers, json=chat(f"{number}")))[0]
        for number in range(5)
    ]
    assert statuses == [200, 200, 429, 429, 429]

    page = await admin.open("/dashboard/limits")
    uses = cells(page, "eager@example.com for all models together")[0]
    assert uses.startswith("2 of 2 requests a minute full free in"), uses
    [limit] = [each for each in (await admin.api("GET", "/api/limits"))["data"] if each["who"] == form["who"]]
    assert f"{limit['used']['tokens_per_day']:,} of 100,000 tokens a day all free in" in uses

    refused = page.partition('aria-label="Table of refusals">')[2]
    [row] = [row for row in refused.split("<tr>") if "eager@example.com" in row]
    assert "requests a minute" in words(row)
    assert " 3 " in words(row)
    [count] = [
        each for each in (await admin.api("GET", "/api/limits/refusals"))["data"] if each["user"] == "eager@example.com"
    ]
    assert (count["kind"], count["refused"]) == ("requests", 3)

    own = await user.open("/dashboard/limits")
    assert "2 of 2 requests a minute" in words(own)
    assert 'name="who"' not in own
    other = await signed_in(server, "user", "calm")
    assert "eager@example.com" not in await other.open("/dashboard/limits")
    for path in ("/dashboard/limits", "/dashboard/limits/delete"):
        await other.submit(path, status=403, **form)
        await admin.submit(path, status=403, headers={"sec-fetch-site": "cross-site"}, **form)
