"""The pages of prompts and pipelines: drafts that are checked, versions compared, and what each was used for."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from signoff.core.price import Price
from signoff.work.admin.usage import add_price
from signoff.work.pipelines.functions import register_missing_builtins
from support.live_server import Live, chat, live, until
from support.pages import cells, expected_of, signed_in, words

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("library"), log_before_answer=True, release_after_seconds=0) as server:
        await register_missing_builtins(server.services)
        await server.model("parrot")
        await add_price(server.services, Price(model="parrot", valid_from=0, request=1000, input=0, output=0))
        yield server


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("prompt", "{question} for {name} {{not}} {question}", "Placeholders: question name"),
        ("prompt", "<b>", "No placeholders"),
        ("pipeline", "uppercase(uppercase(text))", "Arguments: text uppercase uppercase"),
        ("pipeline", "uppercase(\n  ☃)", "line 2, column 3"),
        ("pipeline", "nosuch(x)", "nosuch"),
        ("pipeline", "<img src=x onerror=alert(1)>", "line 1, column 1"),
        ("prompt", "", "`body` must be 1 to"),
    ],
)
async def test_a_draft_is_checked_and_not_saved(server: Live, kind: str, body: str, expected: str) -> None:
    user = await signed_in(server, "user", "writer")
    page = await user.submit(f"/dashboard/drafts/{kind}", status=200, body=body, name="draft")
    assert expected in words(page)
    assert "<img" not in page
    await user.open(f"/dashboard/{kind}s/draft", status=404)
    await user.submit("/dashboard/drafts/other", status=404, body=body)


async def test_the_place_of_a_fault_is_told_to_the_editor(server: Live) -> None:
    user = await signed_in(server, "user", "placer")
    page = await user.submit("/dashboard/drafts/pipeline", status=200, body="uppercase(\n  ☃)", name="")
    assert re.findall(r'data-at="(\d+)"', page) == ["13"]


async def test_versions_of_a_prompt_have_their_cost_and_verdicts_and_are_compared(server: Live) -> None:
    admin = await signed_in(server, "admin", "owner")
    for number, text in enumerate(("One {x}", "Two {x}", "Three {x}")):
        form = {"body": text, "model": "parrot", "message": f"<b>{number}", "production": "yes"}
        send, path = (admin.change, "/dashboard/prompts/greet") if number else (admin.submit, "/dashboard/prompts")
        await send(path, name="greet", **form)
    for version in (1, 1, 3):
        await admin.api("POST", "/v1/chat/completions", json=chat("hello", f"greet@{version}"))
    page = await admin.open("/dashboard/prompts/greet")
    assert "&lt;b&gt;1" in page
    assert cells(page, "&lt;b&gt;0")[:3] == ["2", "$0.002", "$0.001"]
    assert cells(page, "&lt;b&gt;1")[0] == "0"
    two_and_three = await admin.open("/dashboard/prompts/greet?version=3&against=1")
    assert "<del>One {x}</del>" in two_and_three
    assert "<ins>Three {x}</ins>" in two_and_three
    assert "<del>Two {x}</del>" in await admin.open("/dashboard/prompts/greet?version=3")


async def test_versions_of_a_pipeline_have_their_runs_with_the_cost_of_all_steps_and_verdicts(server: Live) -> None:
    admin = await signed_in(server, "admin", "runner")
    await admin.submit("/dashboard/prompts", name="say", body="Say {x}", model="parrot", production="yes")
    await admin.submit("/dashboard/pipelines", name="twice", body="say(say(text))", production="yes")
    await admin.submit("/dashboard/pipelines", name="shout", body="uppercase(twice(text))", production="yes")
    rules = [{"if": "true", "then": "hold"}]
    await admin.api("PUT", "/api/policies/loud", json={"target": "shout", "rules": rules})
    run = (await admin.submit("/dashboard/pipelines/shout/run", **{"argument.text": "hi"})).rpartition("/")[2]

    async def is_now(status: str) -> None:
        async def reached() -> bool | None:
            return (await admin.api("GET", f"/api/jobs/{run}"))["status"] == status or None

        await until(reached)

    await is_now("human")
    await admin.api("POST", f"/api/reviews/{run}/decide", json={"verdict": "reject", "reason": "no", "round": 1})
    await is_now("fail")
    [runs, failed, _, cost, each, verdicts, changed] = cells(
        await admin.open("/dashboard/pipelines/shout"), "1 production"
    )[1:8]
    assert (runs, failed, cost, each, verdicts, changed) == ("1", "1", "$0.002", "$0.002", "1", "100.0 %")
    assert cells(await admin.open("/dashboard/pipelines/twice"), "1 production")[1:4][0] == "0"


async def test_an_item_is_shared_and_deleted_unless_a_pipeline_calls_it(server: Live) -> None:
    owner, other = await signed_in(server, "user", "sharer"), await signed_in(server, "user", "sharee")
    await owner.submit("/dashboard/prompts", name="ours", body="Hi {x}", model="parrot", production="yes")
    await owner.submit("/dashboard/pipelines", name="theirs", body="ours(x)", production="yes")
    await other.open("/dashboard/prompts/ours", status=404)
    await owner.submit("/dashboard/prompts/ours/share", shared="yes")
    page = await other.open("/dashboard/prompts/ours")
    assert "Delete…" not in page
    await other.submit("/dashboard/prompts/ours/delete", status=403)
    assert "cannot be deleted now" in await owner.open("/dashboard/prompts/ours")
    await owner.submit("/dashboard/prompts/ours/delete", status=409)
    await owner.submit("/dashboard/pipelines/theirs/delete")
    await owner.submit("/dashboard/prompts/ours/share")
    await other.open("/dashboard/prompts/ours", status=404)
    assert await owner.submit("/dashboard/prompts/ours/delete") == "/dashboard/prompts"
    await owner.api("GET", "/api/prompts/ours", status=404)


async def test_what_somebody_wrote_is_not_lost_when_it_cannot_be_saved(server: Live) -> None:
    user = await signed_in(server, "user", "careful")
    form = {"name": "draft", "body": "uppercase(<b>", "message": "<b>why"}
    page = await user.submit("/dashboard/pipelines", status=400, **form)
    assert 'role="alert"' in page
    assert "uppercase(&lt;b&gt;</textarea>" in page
    assert 'value="draft"' in page
    await user.submit("/dashboard/pipelines", name="kept", body="uppercase(text)", production="yes")
    page = await user.change("/dashboard/pipelines/kept", status=400, **form)
    assert "uppercase(&lt;b&gt;</textarea>" in page
    assert 'value="&lt;b&gt;why"' in page
    assert (await user.api("GET", "/api/pipelines/kept"))["version"] == 1
    admin = await signed_in(server, "admin", "careful-admin")
    page = await admin.submit("/dashboard/models", status=400, name="<b>new", body='{"kind": "none"}')
    assert 'value="&lt;b&gt;new"' in page
    assert "{&#34;kind&#34;: &#34;none&#34;}</textarea>" in page


@pytest.mark.parametrize(
    ("kind", "texts"), [("prompt", ("A {x}", "B {x}", "C {x}")), ("pipeline", ("uppercase(a)",) * 3)]
)
async def test_an_open_page_does_not_revert_what_was_saved_meanwhile(
    server: Live, kind: str, texts: tuple[str, str, str]
) -> None:
    owner, admin = await signed_in(server, "user", f"{kind}er"), await signed_in(server, "admin", f"{kind}-admin")
    name, path = f"contested_{kind}", f"/dashboard/{kind}s/contested_{kind}"
    form = {"name": name, "production": "yes"}
    await owner.submit(f"/dashboard/{kind}s", body=texts[0], **form)
    opened = expected_of(await owner.open(path))
    await admin.change(path, body=texts[1], **form)

    mine = form | {"body": texts[2], "message": "mine"}
    page = await owner.submit(path, status=409, expected=opened, **mine)
    assert "Version 2 was saved meanwhile." in words(page), "only admins may read who made a change"
    assert texts[2] + "</textarea>" in page
    assert 'value="mine"' in page
    if kind == "prompt":
        assert "<del>B {x}</del>" in page.partition('id="conflict"')[2]
    assert (await owner.api("GET", f"/api/{kind}s/{name}"))["version"] == 2
    seen = await admin.submit(path, status=409, expected=opened, **mine)
    assert f"meanwhile by {kind}-admin@example.com" in words(seen)

    await owner.submit(path, expected=expected_of(page), **mine)
    assert (await owner.api("GET", f"/api/{kind}s/{name}"))["version"] == 3
