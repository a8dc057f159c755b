"""The pages of usage, models, people and the audit log: what they lead to, and what they change."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator

import msgspec
import pytest

from signoff.core.filters import JobFilter
from signoff.dashboard.shell import format_duration
from signoff.work.admin.people import sign_in_link, user_with_email
from support.live_server import Live, chat, live, until
from support.pages import Browser, cells, expected_of, signed_in, words

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("admin"), log_before_answer=True) as server:
        yield server


async def sent(user: Browser, text: str, model: str) -> None:
    """Ask a model."""
    await user.server.ask("POST", "/v1/chat/completions", headers=user.headers, json=chat(text, model))


async def test_the_percentiles_of_latency_are_those_of_the_api(server: Live) -> None:
    await server.model("swift")
    user = await signed_in(server, "user", "swift")
    for number in range(5):
        await user.api("POST", "/v1/chat/completions", json=chat(f"hello {number}", "swift"))
    [row] = (await user.api("GET", "/api/usage/latencies?by=model"))["data"]
    measures = [f"{measure}_p{share}_us" for measure in ("first_byte", "answer") for share in (50, 95, 99)]
    page = await user.open("/dashboard/usage?days=1&measure=first")
    assert cells(page.partition('id="latency"')[2], "swift") == [
        "5",
        *(format_duration(row[name]) for name in measures),
    ]
    assert ">First byte, p99<" in page
    assert "hours and days are those of UTC" in page
    # the load of reviewers is for admins
    assert "verdicts took effect" not in page
    assert "verdicts took effect" in await (await signed_in(server, "admin", "boss")).open("/dashboard/usage")


async def test_a_sum_of_usage_leads_to_its_jobs_the_most_expensive_first(server: Live) -> None:
    admin = await signed_in(server, "admin", "owner")
    await server.model("dear")
    await server.model("cheap")
    await admin.api("PUT", "/api/prices", json={"model": "dear", "input": "1000", "output": "1000"})
    for name, target in (("long_mail", "dear"), ("short_mail", "cheap")):
        prompt = {"name": name, "body": "Answer: {mail}", "model": target}
        await admin.api("POST", "/api/prompts", status=201, json=prompt)
    for name, mail in (("long_mail", "a"), ("long_mail", "a much longer mail"), ("short_mail", "b")):
        location = await admin.submit(f"/dashboard/prompts/{name}/run", **{"argument.mail": mail})
        job_id, token = location.rpartition("/")[2], await server.token("admin", "reader@example.com")
        await server.job_when(token, job_id, lambda job: job["status"] == "success")

    page = await admin.open("/dashboard/usage?days=1&by=prompt_version")
    names = re.findall(r'<tr><th scope="row">(?:<a[^>]*>)?([^<]+)<', page)
    assert names[0] == "long_mail v1", "the most expensive version comes first"
    assert "unknown" in cells(page, "short_mail v1")[3], "what has no price is not $0"
    link = re.search(r'class="sum-link" href="([^"]+)"', page)
    assert link is not None
    jobs = await admin.open(link[1].replace("&amp;", "&"))
    listed = re.findall(r'class="job-link" href="[^"]*">([^<]*)<', jobs)
    assert listed == ["Answer: a much longer mail", "Answer: a"]

    export = re.search(r'href="(/api/usage[^"]+format=csv)"', page)
    assert export is not None
    status, text = await server.ask("GET", export[1].replace("&amp;", "&"), headers=admin.headers)
    assert (status, "long_mail,1," in text) == (200, True)
    yesterday = await admin.open("/dashboard/usage?days=yesterday&by=prompt_version")
    assert "No requests in this range" in yesterday


async def test_a_model_is_registered_changed_tried_and_removed_on_its_page(server: Live) -> None:
    admin = await signed_in(server, "admin", "modeller")
    body = json.dumps({"kind": "echo", "review": "never", "max_parallel": 3})
    assert await admin.submit("/dashboard/models", name="new", body=body) == "/dashboard/models/new"
    assert (await admin.api("GET", "/api/models/new"))["max_parallel"] == 3

    changed = json.dumps({"kind": "echo", "fallbacks": ["echo"], "timeouts": {"total_seconds": 9}})
    await admin.change("/dashboard/models/new", body=changed, action="save")
    api = await admin.api("GET", "/api/models/new")
    assert (api["max_parallel"], api["fallbacks"], api["review"]) == (None, ["echo"], None)
    assert api["timeouts"]["total_seconds"] == 9

    page = await admin.submit("/dashboard/models/new", status=200, question="Are you <there>?", action="try")
    assert "Are you &lt;there&gt;?" in page.partition('role="status">')[2]
    wrong = '{"kind": "echo", "replicas": -1}'
    bad = await admin.change("/dashboard/models/new", status=400, body=wrong, action="save")
    assert "replicas" in words(bad.partition('role="alert">')[2].partition("</p>")[0])

    assert await admin.submit("/dashboard/models/new", action="remove") == "/dashboard/models"
    await admin.api("GET", "/api/models/new", status=404)


async def test_an_open_page_does_not_revert_what_another_admin_changed_in_a_model(server: Live) -> None:
    ann, ben = await signed_in(server, "admin", "ann"), await signed_in(server, "admin", "ben")
    await ann.submit("/dashboard/models", name="watched", body='{"kind": "echo"}')
    opened = expected_of(await ann.open("/dashboard/models/watched"))
    await ben.change("/dashboard/models/watched", body='{"kind": "echo", "review": "always"}', action="save")

    mine = {"body": '{"kind": "echo", "max_parallel": 2}', "action": "save"}
    page = await ann.submit("/dashboard/models/watched", status=409, expected=opened, key="sk-1", **mine)
    alert = words(page.partition('role="alert">')[2].partition("</p>")[0])
    assert alert.startswith("The model was changed meanwhile by ben@example.com.")
    assert alert.endswith("Enter the API key again. Go to the text")
    assert "&#34;max_parallel&#34;: 2}</textarea>" in page
    assert "<del>  &#34;review&#34;: &#34;always&#34;</del>" in page.partition('id="conflict"')[2]
    assert (await ann.api("GET", "/api/models/watched"))["review"] == "always"
    await ann.submit("/dashboard/models/watched", status=409, **mine)

    await ann.submit("/dashboard/models/watched", expected=expected_of(page), **mine)
    assert (await ann.api("GET", "/api/models/watched"))["max_parallel"] == 2


async def test_a_model_shows_its_latency_and_its_last_errors_in_words(server: Live) -> None:
    admin = await signed_in(server, "admin", "watcher")
    await server.model("unreachable", kind="openai", url="http://127.0.0.1:9", attempts=1)
    await server.model("quick")
    await sent(admin, "hello", "quick")
    await sent(admin, "hello", "unreachable")
    page = await admin.open("/dashboard/models/unreachable")
    figures = words(page.partition('id="lately"')[2].partition("</section>")[0])
    assert "Failed 1 100.0 %" in figures
    failed = (await admin.api("GET", "/jobs?status=fail"))[-1]
    assert failed["error"]["message"] in page.replace("&#39;", "'").replace("&#34;", '"')
    row = cells(await admin.open("/dashboard/models"), "quick")
    assert row[-1] == row[-2] != "–", "p50 and p95 of one request"
    for path in ("/dashboard/models/quick", "/dashboard/models"):
        other = await signed_in(server, "user", "curious")
        await other.open(path, status=403)
        await other.submit(path, status=403, name="x", body='{"kind": "echo"}', action="save")


async def test_a_token_shows_what_it_spent_and_its_limit(server: Live) -> None:
    admin = await signed_in(server, "admin", "spender")
    token = (await admin.api("POST", "/api/tokens", status=201, json={"name": 'the "app"'}))["token"]
    await server.model("priced")
    await admin.api("PUT", "/api/prices", json={"model": "priced", "input": "1000", "output": "1000"})
    await server.ask("POST", "/v1/chat/completions", token, json=chat("hello", "priced"))
    token_id = (await admin.api("GET", "/api/tokens?limit=1000"))["data"][-1]["id"]
    await admin.submit("/dashboard/limits", who=f"token:{token_id}", requests_per_minute="60", cost_per_day="5")
    page = await admin.open("/dashboard/people")
    row = cells(page, f"the &#34;app&#34; #{token_id}")
    [usage] = [each for each in (await admin.api("GET", "/api/usage?by=token"))["data"] if each["token"] == token_id]
    assert f"${usage['cost']}" in row
    assert "60 requests a minute, $5 a day change" in row
    assert f'href="/dashboard/jobs?token={token_id}&amp;order=cost"' in page


async def test_the_audit_log_finds_who_changed_a_limit(server: Live) -> None:
    admin = await signed_in(server, "admin", "limit-changer")
    await admin.submit("/dashboard/limits", who="all", model="found", parallel="9")
    await admin.submit("/dashboard/limits", who="all", model="found", parallel="8")
    page = await admin.open("/dashboard/limits")
    link = re.search(r'href="(/dashboard/audit\?[^"]*all(?:%20|\+)found[^"]*)"', page)
    assert link is not None
    history = await admin.open(link[1].replace("&amp;", "&"))
    assert history.count("limit-changer@example.com</a>") == 2
    assert "<del>9</del> <ins>8</ins>" in history
    changed = await admin.open("/dashboard/audit?action=limit changed")
    assert "limit created" not in changed.partition("<tbody>")[2]
    assert "<del>9</del> <ins>8</ins>" in changed


async def test_an_upstream_key_is_stored_shared_bound_to_a_token_and_removed(server: Live) -> None:
    admin, user = await signed_in(server, "admin", "keeper"), await signed_in(server, "user", "borrower")
    await admin.submit("/dashboard/people/keys", name="<b>ours", key="sk-secret-1", shared="yes")
    await admin.submit("/dashboard/people/keys", name="mine", key="sk-secret-2")
    await user.submit("/dashboard/people/keys", status=403, name="x", key="sk-3", shared="yes")
    page = await user.open("/dashboard/people")
    assert "sk-secret" not in page
    assert "&lt;b&gt;ours" in page
    [key] = (await user.api("GET", "/api/keys"))["data"]
    await user.submit("/dashboard/people/tokens", name="bound", key=str(key["id"]))
    [mine] = [each for each in (await admin.api("GET", "/api/keys"))["data"] if each["name"] == "mine"]
    await user.submit("/dashboard/people/tokens", status=404, name="bound", key=str(mine["id"]))
    await user.submit(f"/dashboard/people/keys/{key['id']}/remove", status=403)
    await admin.submit(f"/dashboard/people/keys/{key['id']}/remove")
    assert (await user.api("GET", "/api/keys"))["data"] == []


@pytest.mark.parametrize("form", [{"days": "10000000"}, {"days": "36501"}, {"days": "0"}, {"name": "n" * 201}])
async def test_a_token_of_the_page_has_the_limits_of_the_api(form: dict[str, str], server: Live) -> None:
    user = await signed_in(server, "user", "limitless")
    await user.submit("/dashboard/people/tokens", status=400, **{"name": "x"} | form)
    assert (await user.api("GET", "/api/tokens"))["data"] == []
    await user.submit("/dashboard/people/tokens", name="n" * 200, days="36500")
    [token] = (await user.api("GET", "/api/tokens"))["data"]
    assert token["expires_at"] > "2100"
    await user.api("DELETE", f"/api/tokens/{token['id']}", status=204)


async def test_a_user_gets_a_new_sign_in_link_from_an_admin(server: Live) -> None:
    admin, user = await signed_in(server, "admin", "linker"), await signed_in(server, "user", "forgetful")
    [person] = (await user.api("GET", "/api/users"))["data"]
    await user.submit(f"/dashboard/people/users/{person['id']}/link", status=403)
    await admin.submit("/dashboard/people/users/999999/link", status=404)
    path = f"{server.url}/dashboard/people/users/{person['id']}/link"
    async with server.http.post(path, headers=admin.headers, allow_redirects=False) as response:
        cookie = response.headers["set-cookie"].split(";")[0]
    once = admin.headers | {"cookie": f"{admin.headers['cookie']}; {cookie}"}
    _, page = await server.ask("GET", "/dashboard/people", headers=once)
    link = re.search(r"/signin/[\w-]+", page)
    assert link is not None
    async with server.http.get(server.url + link[0], allow_redirects=False) as response:
        assert response.status == 303
    server.http.cookie_jar.clear()


async def test_an_admin_ends_one_session_of_a_user_or_all(server: Live) -> None:
    admin, user = await signed_in(server, "admin", "ender"), await signed_in(server, "user", "roaming")
    [person] = (await user.api("GET", "/api/users"))["data"]
    path = f"/dashboard/people/users/{person['id']}"
    await user.open(path, status=403)
    await admin.open("/dashboard/people/users/999999", status=404)
    [session] = (await user.api("GET", "/api/sessions"))["data"]
    assert path in await admin.open("/dashboard/people")
    assert len(cells(await admin.open(path), f"#{session['id']}")) == 4
    await user.submit(f"{path}/sessions/{session['id']}/end", status=403)
    assert await admin.submit(f"{path}/sessions/{session['id']}/end") == path
    assert "No sessions." in await admin.open(path)
    await user.open("/dashboard/people", status=303)
    # and all of them, with the links that were not used yet
    link = await sign_in_link(server.services, await user_with_email(server.services, "roaming@example.com"))
    assert await admin.submit(f"{path}/sessions/end") == path
    async with server.http.get(server.url + link, allow_redirects=False) as response:
        assert "set-cookie" not in response.headers


async def test_an_admin_erases_a_user_by_typing_their_address(server: Live) -> None:
    admin, user = await signed_in(server, "admin", "eraser"), await signed_in(server, "user", "leaving")
    [person] = (await user.api("GET", "/api/users"))["data"]
    path = f"/dashboard/people/users/{person['id']}"
    await sent(user, "forget this", "echo")
    assert "their 1 jobs" in words(await admin.open(path))
    await user.submit(f"{path}/erase", status=403, email="leaving@example.com")
    page = await admin.submit(f"{path}/erase", status=400, email="somebody@example.com")
    assert "must be the address of the user, leaving@example.com" in page
    assert "leaving@example.com" in await admin.open(path)
    assert await admin.submit(f"{path}/erase", email=" Leaving@example.com") == path

    async def is_erased() -> bool | None:
        return "their 0 jobs" in words(await admin.open(path)) or None

    await until(is_erased)
    assert "disabled" in words(await admin.open(path))


async def test_a_review_queue_is_created_changed_and_removed(server: Live) -> None:
    admin = await signed_in(server, "admin", "queuer")
    await signed_in(server, "reviewer", "lawyer")
    refused = await admin.submit("/dashboard/queues", status=400, name="law", members="nobody@example.com")
    assert "nobody@example.com" in refused
    form = {"name": "law", "members": "lawyer@example.com,\nqueuer@example.com", "ageing_seconds": "3600"}
    await admin.submit("/dashboard/queues", **form)
    [queue] = (await admin.api("GET", "/api/review-queues"))["data"]
    assert (queue["members"], queue["ageing_seconds"]) == (["lawyer@example.com", "queuer@example.com"], 3600)
    page = await admin.open("/dashboard/queues?name=law")
    assert "Change law" in page
    assert 'value="3600"' in page
    await admin.submit("/dashboard/queues/reasons", reasons="Tone\r\n\r\n<b>Fact\r\n")
    assert (await admin.api("GET", "/api/review-reasons"))["reasons"] == ["Tone", "<b>Fact"]
    assert "&lt;b&gt;Fact" in await admin.open("/dashboard/queues")
    await admin.submit("/dashboard/queues/delete", name="law")
    assert (await admin.api("GET", "/api/review-queues"))["data"] == []
    await (await signed_in(server, "reviewer", "other")).open("/dashboard/queues", status=403)


async def test_an_answer_is_looked_up_in_the_cache_and_deleted_and_hits_have_their_price(server: Live) -> None:
    admin, user = await signed_in(server, "admin", "saver"), await signed_in(server, "user", "asker")
    await server.model("pricey")
    await admin.api("PUT", "/api/prices", json={"model": "pricey", "input": "0", "output": "0", "request": "0.5"})
    request = chat("<b>twice", "pricey") | {"temperature": 0}
    form = {"endpoint": "/v1/chat/completions", "body": json.dumps(request)}
    assert "has no answer to this request" in await user.submit("/dashboard/cache/lookup", status=200, **form)
    for _ in range(3):
        await user.api("POST", "/v1/chat/completions", json=request)
    await user.submit("/dashboard/cache/lookup", status=400, **(form | {"body": "{"}))
    page = await user.submit("/dashboard/cache/lookup", status=200, **form)
    assert "&lt;b&gt;twice</p>" in page
    assert cells(page, "pricey") == ["2", "1", "66.7 %", "$1"]
    key = re.search(r'name="key" value="([^"]+)"', page)
    assert key is not None
    await user.submit("/dashboard/cache/clear", key=key[1])
    assert "has no answer to this request" in await user.submit("/dashboard/cache/lookup", status=200, **form)


async def test_the_page_of_the_cache_leaves_out_a_model_that_only_lost_calls_asked(server: Live) -> None:
    admin = await signed_in(server, "admin", "loser")
    await sent(admin, "hello", "echo")
    [job] = await server.services.store.jobs.list(JobFilter(newest_first=True, limit=1))
    await server.services.store.usage.record(msgspec.structs.replace(job, model="lost", cache="miss"))
    assert '<th scope="row">lost</th>' not in await admin.open("/dashboard/cache")


async def test_the_audit_log_offers_only_actions_that_it_can_have(server: Live) -> None:
    admin = await signed_in(server, "admin", "reader-of-actions")
    offered = set(re.findall(r'<option value="([^"]+)">', await admin.open("/dashboard/audit")))
    assert {"limit removed", "user erased", "token created", "token revoked"} <= offered
    assert offered.isdisjoint({"user removed", "token changed", "token removed"})


async def test_a_price_is_set_for_a_model_whose_cost_is_unknown(server: Live) -> None:
    admin = await signed_in(server, "admin", "pricer")
    await server.model("unpriced")
    await sent(admin, "hello", "unpriced")
    assert "unpriced</a> (1 request)" in await admin.open("/dashboard/prices")
    assert 'value="unpriced"' in await admin.open("/dashboard/prices?model=unpriced")
    refused = await admin.submit("/dashboard/prices", status=400, model="unpriced", input="<b>")
    assert "is not a number" in refused
    assert 'value="&lt;b&gt;"' in refused
    await admin.submit("/dashboard/prices", model="unpriced", input="2.5", output="10", valid_from="2026-01-31T08:00")
    [price] = [each for each in (await admin.api("GET", "/api/prices"))["data"] if each["model"] == "unpriced"]
    assert (price["input"], price["output"], price["valid_from"][:16]) == ("2.5", "10", "2026-01-31T08:00")
    assert cells(await admin.open("/dashboard/prices"), "unpriced")[:4] == ["$2.5", "", "$10", "$0"]
    await admin.submit("/dashboard/prices/delete", model="unpriced", valid_from=price["valid_from"])
    assert "unpriced" not in {each["model"] for each in (await admin.api("GET", "/api/prices"))["data"]}
