"""The pages of jobs, usage, models and the audit log."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from signoff.work.admin.people import create_user, sign_in_link
from support.live_server import Live, chat, live
from support.stores import a_step, leased

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("pages"), log_before_answer=True) as server:
        yield server


async def cookie_of(server: Live, role: str, name: str) -> dict[str, str]:
    """Sign in as a new user with a link, and return the headers of a browser."""
    user = await create_user(server.services, f"{name}@example.com", role)  # type: ignore[arg-type]
    link = await sign_in_link(server.services, user)
    async with server.http.get(server.url + link, allow_redirects=False) as response:
        cookie = response.headers["set-cookie"].split(";")[0]
    server.http.cookie_jar.clear()
    return {"cookie": cookie, "accept": "text/html", "sec-fetch-site": "same-origin"}


async def page(server: Live, path: str, headers: dict[str, str]) -> str:
    status, text = await server.ask("GET", path, headers=headers)
    assert status == 200, text
    return text


async def test_the_start_page_leads_to_the_first_page_of_the_role(server: Live) -> None:
    for role, path in (("user", "/dashboard/jobs"), ("reviewer", "/dashboard/review"), ("admin", "/dashboard/review")):
        headers = await cookie_of(server, role, f"start-{role}")
        async with server.http.get(server.url + "/", headers=headers, allow_redirects=False) as response:
            assert (response.status, response.headers["location"]) == (303, path)


async def test_a_page_sends_a_visitor_who_is_not_signed_in_to_the_form(server: Live) -> None:
    browser = {"accept": "text/html"}
    async with server.http.get(f"{server.url}/dashboard/jobs", headers=browser, allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (303, "/dashboard/sign-in")
    assert (await server.ask("GET", "/dashboard/jobs"))[0] == 401


async def test_the_bar_names_the_pages_of_the_role_and_marks_the_current_one(server: Live) -> None:
    for role, names in (
        ("user", ["Jobs", "Usage"]),
        ("reviewer", ["Review", "Jobs", "Usage"]),
        ("admin", ["Review", "Jobs", "Usage", "Models", "Audit log"]),
    ):
        text = await page(server, "/dashboard/usage", await cookie_of(server, role, f"bar-{role}"))
        bar = re.search(r'aria-label="Pages">(.*?)</nav>', text, re.DOTALL)
        assert bar is not None
        assert re.findall(r">([^<]+)</a>", bar[1]) == names
        assert re.findall(r'href="([^"]+)" aria-current="page"', bar[1]) == ["/dashboard/usage"]


async def test_the_list_of_jobs_filters_and_pages_in_its_address(server: Live) -> None:
    headers = await cookie_of(server, "reviewer", "lister")
    token = await server.token("user", "many@example.com")
    for number in range(60):
        await server.ask("POST", "/v1/chat/completions", token, json=chat(f"question {number:03}"))

    first = await page(server, "/dashboard/jobs?status=success", headers)
    older = re.search(r'href="([^"]+)">Older', first)
    assert older is not None
    second = await page(server, older[1].replace("&amp;", "&"), headers)

    numbers = [re.findall(r"question (\d{3})</a>", text) for text in (first, second)]
    assert numbers[0] == [f"{number:03}" for number in range(59, 9, -1)]
    assert numbers[1][:10] == [f"{number:03}" for number in range(9, -1, -1)]
    assert "Newest" in second


async def test_a_user_sees_only_the_own_jobs(server: Live) -> None:
    token = await server.token("user", "owner@example.com")
    await server.ask("POST", "/v1/chat/completions", token, json=chat("a private question"))
    for role, count in (("user", 0), ("reviewer", 1)):
        text = await page(server, "/dashboard/jobs", await cookie_of(server, role, f"sees-{role}"))
        assert text.count("a private question") in {count, 2 * count}


async def test_the_id_of_a_job_leads_to_its_page(server: Live) -> None:
    headers = await cookie_of(server, "admin", "finder")
    address = f"{server.url}/dashboard/jobs?q=%20a%2Fb%20"
    async with server.http.get(address, headers=headers, allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (303, "/dashboard/jobs/a%2Fb")
    status, text = await server.ask("GET", "/dashboard/jobs/nowhere", headers=headers)
    assert (status, "does not exist" in text) == (404, True)


async def test_the_page_of_a_held_job_says_why_it_waits_and_hides_the_answer_from_its_owner(server: Live) -> None:
    token = await server.token("user", "waiter@example.com")
    body = {"input": "<img src=x onerror=alert(1)> or 'not'?", "model": "echo"}
    _, response = await server.ask("POST", "/enqueue", token, json=body)
    reviewer = await server.token("reviewer", "looker@example.com")
    job = await server.job_when(reviewer, response["job_id"], lambda job: job["status"] == "human")
    path = f"/dashboard/jobs/{job['job_id']}"

    seen = await page(server, path, await cookie_of(server, "reviewer", "held-reviewer"))
    assert "Waits for a person since" in seen
    assert "Held for review, round 1" in seen
    assert "<img src=x" not in seen
    assert "&lt;img src=x onerror=alert(1)&gt;" in seen
    assert "'\\''not'\\''" in seen.replace("&#39;", "'"), "the command quotes the body for the shell"

    await server.ask("POST", "/reviewJob", reviewer, json={"id": job["job_id"], "status": "human", "response": "DRAFT"})
    owner = {"authorization": f"Bearer {token}", "accept": "text/html"}
    hidden = await page(server, path, owner)
    assert "it is delivered when it is signed off" in hidden
    assert "DRAFT" not in hidden


async def test_the_timeline_tells_the_attempts_verdicts_and_errors(server: Live) -> None:
    store = server.services.store
    job = await leased(store)
    await store.jobs.transition(job.id, a_step("hold", changes={"response": b'"first"'}))
    admin = await server.token("admin", "boss@example.com")
    await server.ask("POST", "/reviewJob", admin, json={"id": job.id, "status": "fail", "reason": "Wrong <b>fact</b>"})

    text = await page(server, f"/dashboard/jobs/{job.id}", {"authorization": f"Bearer {admin}", "accept": "text/html"})

    titles = re.findall(r"<h3>([^<]+)</h3>", text)
    assert titles == ["Received", "Held for review, round 1", "Rejected by boss@example.com", "Answer withheld"]
    assert "Wrong &lt;b&gt;fact&lt;/b&gt;" in text


async def test_a_job_is_cancelled_and_sent_again_on_its_page(server: Live) -> None:
    headers = await cookie_of(server, "admin", "repeater")
    job = await leased(server.services.store)
    path = f"/dashboard/jobs/{job.id}"
    for forged, status in (({"sec-fetch-site": "cross-site"}, 403), ({}, 303)):
        answer = await server.ask("POST", f"{path}/cancel", headers=headers | forged, allow_redirects=False)
        assert answer[0] == status
    assert (await server.services.store.jobs.get(job.id)).status == "fail"

    async with server.http.post(f"{server.url}{path}/repeat", headers=headers, allow_redirects=False) as response:
        location = response.headers["location"]
    repeated = await server.services.store.jobs.get(location.rpartition("/")[2])
    assert (response.status, repeated.retry_of) == (303, job.id)


async def test_the_sums_of_usage_are_those_of_the_api(server: Live) -> None:
    token = await server.token("user", "payer@example.com")
    for number in range(3):
        await server.ask("POST", "/v1/chat/completions", token, json=chat(f"usage {number}"))
    browser = {"authorization": f"Bearer {token}", "accept": "text/html"}
    text = await page(server, "/dashboard/usage?days=31&by=model", browser)
    export = re.search(r'href="(/api/usage[^"]+)"', text)
    assert export is not None
    address = export[1].replace("&amp;", "&").replace("csv", "json")
    total = (await server.ask("GET", address, token))[1]["total"]
    assert total["jobs"] == 3

    row = re.search(r"<tfoot>(.*?)</tfoot>", text, re.DOTALL)
    assert row is not None
    cells = re.findall(r'<td class="num">([^<]*)', row[1])
    assert cells[:3] == [str(total[name]) for name in ("jobs", "prompt_tokens", "completion_tokens")]
    assert "unknown" in row[1], "echo has no price, so its cost is not known"
    assert "$0" not in row[1]


async def test_the_page_of_models_shows_health_and_failures(server: Live) -> None:
    headers = await cookie_of(server, "admin", "modeller")
    await server.model("unreachable", kind="openai", url="http://127.0.0.1:9")
    text = await page(server, "/dashboard/models", headers)
    row = re.search(r"<tr>\s*<th scope=\"row\">unreachable.*?</tr>", text, re.DOTALL)
    assert row is not None
    assert ">down</span>" in row[0]


async def test_the_audit_log_shows_who_changed_what(server: Live) -> None:
    admin = await server.token("admin", "changer@example.com")
    status, answer = await server.ask(
        "PUT", "/api/limits/user:changer@example.com", admin, json={"requests_per_minute": 7}
    )
    assert status in {200, 201}, answer
    browser = {"authorization": f"Bearer {admin}", "accept": "text/html"}
    text = await page(server, "/dashboard/audit?actor=user:changer@example.com", browser)
    assert "changer@example.com" in text
    assert "limit created" in text
    assert "<ins>7</ins>" in text
    assert (await page(server, "/dashboard/audit?actor=nobody", browser)).count("No change matches") == 1


async def test_no_page_loads_anything_from_elsewhere_or_runs_a_script(server: Live) -> None:
    headers = await cookie_of(server, "admin", "strict")
    for name in ("review", "jobs", "usage", "models", "audit"):
        async with server.http.get(f"{server.url}/dashboard/{name}", headers=headers) as response:
            text, policy = await response.text(), response.headers["content-security-policy"]
        assert "unsafe-inline" not in policy
        assert not re.findall(r"<script|<style|<[^>]*\s(?:style|on\w+)=", text)
        links = re.findall(r'<(?:link|img|script|iframe)[^>]+(?:href|src)="([^"]*)"', text)
        assert links
        assert all(link.startswith("/static/") for link in links)
        for link in links:
            assert (await server.ask("GET", link))[0] == 200
