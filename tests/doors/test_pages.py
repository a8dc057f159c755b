"""The pages of jobs, usage, models and the audit log."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from signoff.core.access import Caller
from signoff.dashboard.shell import pages_of
from signoff.dashboard.timeline import reason_of_state
from signoff.work.admin.people import create_user, sign_in_link
from signoff.work.pipelines.functions import register_missing_builtins
from support.live_server import Live, chat, live, until
from support.stores import a_job, a_step, leased

pytestmark = pytest.mark.anyio
FIRST, MORE = ["Jobs", "Batches", "Usage", "Playground", "Prompts", "Pipelines"], ["Functions", "Cache", "Limits"]
OF_ADMINS = ["Prices", "Review queues", "Quality of review", "Audit log"]
ADMIN = Caller(user_id=1, token_id=1, role="admin", email="admin@example.com")
BAR = {
    "user": [*FIRST, "People", *MORE, "API"],
    "reviewer": ["Review", *FIRST, "People", *MORE, "API"],
    "admin": ["Review", *FIRST, "Models", "Policies", "People", *MORE, *OF_ADMINS, "API"],
}


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("pages"), log_before_answer=True) as server:
        await register_missing_builtins(server.services)
        yield server


async def cookie_of(server: Live, role: str, name: str) -> dict[str, str]:
    """Sign in as a new user with a link, and return the headers of a browser."""
    user = await create_user(server.services, f"{name}@example.com", role)  # type: ignore[arg-type]
    link = await sign_in_link(server.services, user)
    async with server.http.get(server.url + link, allow_redirects=False) as response:
        cookie = response.headers["set-cookie"].split(";")[0]
    server.http.cookie_jar.clear()
    return {"cookie": cookie, "accept": "text/html", "sec-fetch-site": "same-origin"}


async def submit(server: Live, path: str, form: dict[str, str], headers: dict[str, str]) -> tuple[int, str]:
    """Submit a form as a browser does; return the status, and the address of the redirect or the page."""
    async with server.http.post(server.url + path, data=form, headers=headers, allow_redirects=False) as response:
        text = await response.text()
        return response.status, response.headers["location"] if response.status == 303 else text


async def ended(server: Live, location: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return the job of the page at `location` once it has succeeded."""

    async def successful() -> dict[str, Any] | None:
        _, job = await server.ask("GET", f"/job?id={location.rpartition('/')[2]}", headers=headers)
        return job if job["status"] == "success" else None

    return await until(successful)


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
        assert (response.status, response.headers["location"]) == (303, "/dashboard/sign-in?next=%2Fdashboard%2Fjobs")
    assert (await server.ask("GET", "/dashboard/jobs"))[0] == 401


async def test_the_bar_names_the_pages_of_the_role_and_marks_the_current_one(server: Live) -> None:
    for role, names in BAR.items():
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
    job_id = "01A228D3-6ac4-7386-a92b-ac69c11a8858"
    async with server.http.get(
        f"{server.url}/dashboard/jobs?q=%20{job_id}%20", headers=headers, allow_redirects=False
    ) as response:
        assert (response.status, response.headers["location"]) == (303, f"/dashboard/jobs/{job_id.lower()}")
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
    assert "Waits for a person for" in seen
    assert "Held for review, round 1" in seen
    assert "<img src=x" not in seen
    assert "&lt;img src=x onerror=alert(1)&gt;" in seen
    assert "'\\''not'\\''" in seen.replace("&#39;", "'"), "the command quotes the body for the shell"

    await server.ask("POST", "/reviewJob", reviewer, json={"id": job["job_id"], "status": "human", "response": "DRAFT"})
    owner = {"authorization": f"Bearer {token}", "accept": "text/html"}
    hidden = await page(server, path, owner)
    assert "it is delivered when it is signed off" in hidden
    assert "DRAFT" not in hidden


def test_a_job_waits_for_a_person_since_its_hold_however_often_it_is_opened_meanwhile() -> None:
    second = 1_000_000
    job = a_job(status="human", round=1, held_at=0, updated_at=3000 * second)
    assert reason_of_state(job, 3600 * second) == "Waits for a person for 1 h. Nobody has it open."


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
    row = re.search(r"<tr>\s*<th scope=\"row\"><a[^>]*>unreachable.*?</tr>", text, re.DOTALL)
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
    for path in [each.path for each in pages_of(ADMIN)]:
        async with server.http.get(server.url + path, headers=headers) as response:
            text, policy = await response.text(), response.headers["content-security-policy"]
        assert "unsafe-inline" not in policy
        assert not re.findall(r"<script(?! (?:type=.module. )?src=./static/)|<style|<[^>]*\s(?:style|on\w+)=", text)
        links = re.findall(r'<(?:link|img|script|iframe)[^>]+(?:href|src)="([^"]*)"', text)
        assert links
        assert all(link.startswith("/static/") for link in links)
        for link in links:
            assert (await server.ask("GET", link))[0] == 200


async def test_a_prompt_is_saved_changed_compared_and_run_on_its_page(server: Live) -> None:
    headers = await cookie_of(server, "user", "writer")
    first = {"name": "greet", "body": "Say hello\r\nto {name}!", "model": "echo", "production": "yes"}
    assert await submit(server, "/dashboard/prompts", first, headers) == (303, "/dashboard/prompts/greet")
    second = {"body": "Say goodbye\r\nto {name}!", "model": "echo", "message": "<i>sad</i>", "expected": "1"}
    assert await submit(server, "/dashboard/prompts/greet", second, headers) == (
        303,
        "/dashboard/prompts/greet?version=2",
    )

    text = await page(server, "/dashboard/prompts/greet?version=2", headers)
    assert "<del>Say hello</del>\n<ins>Say goodbye</ins>\nto {name}!" in text
    assert "&lt;i&gt;sad&lt;/i&gt;" in text
    assert "Use this version" in text, "the first version is in production"
    await submit(server, "/dashboard/prompts/greet/production", {"version": "2"}, headers)
    _, item = await server.ask("GET", "/api/prompts/greet", headers=headers)
    assert (item["version"], item["body"]) == (2, "Say goodbye\nto {name}!")

    _, location = await submit(server, "/dashboard/prompts/greet/run", {"argument.name": "Ann"}, headers)
    job = await ended(server, location, headers)
    assert "Say goodbye\nto Ann!" in str(job["response"]).replace("\\n", "\n")


async def test_the_run_of_a_pipeline_shows_a_field_for_each_argument_and_the_log_of_its_calls(server: Live) -> None:
    headers = await cookie_of(server, "user", "piper")
    form = {"name": "sums", "body": "add(multiply(a, b), c)", "production": "yes"}
    assert (await submit(server, "/dashboard/pipelines", form, headers))[0] == 303
    text = await page(server, "/dashboard/pipelines/sums", headers)
    assert re.findall(r'name="argument\.(\w+)"', text) == ["a", "b", "c"]

    arguments = {"argument.a": "2", "argument.b": "3", "argument.c": "4"}
    _, location = await submit(server, "/dashboard/pipelines/sums/run", arguments, headers)
    await ended(server, location, headers)
    text = await page(server, location, headers)
    calls = re.search(r'aria-label="Table of calls">(.*?)</table>', text, re.DOTALL)
    assert calls is not None
    assert re.findall(r"<span>(\w+)</span>", calls[1]) == ["add", "multiply"]
    assert ">10<" in text


async def test_a_sync_says_what_it_added_and_links_back(server: Live) -> None:
    headers = await cookie_of(server, "admin", "syncer")
    status, text = await submit(server, "/dashboard/functions/sync", {}, headers)
    assert status == 200
    assert "<strong>0</strong> added" in text
    assert "Refresh page" in text
    forged = headers | {"sec-fetch-site": "cross-site"}
    assert (await submit(server, "/dashboard/functions/sync", {}, forged))[0] == 403


async def test_what_a_sync_would_do_is_shown_and_not_done(server: Live) -> None:
    headers = await cookie_of(server, "admin", "looker")
    library = server.services.store.library
    every = list(await library.functions())
    gone = msgspec.structs.replace(every[0], name="vanished", module="custom_gone")
    await library.sync([*[each for each in every if each.name != "add"], gone])
    server.services.caches.functions.invalidate()
    status, text = await submit(server, "/dashboard/functions/preview", {}, headers)
    assert status == 200
    assert "Nothing was changed" in text
    assert '<strong>1</strong> added: <span class="mono">add</span>' in text
    assert '<strong>1</strong> dropped: <span class="mono">vanished</span>' in text
    assert "vanished" in {each.name for each in await library.functions()}
    assert (await submit(server, "/dashboard/functions/sync", {}, headers))[0] == 200
    assert {each.name for each in await library.functions()} == {each.name for each in every}


async def test_the_cached_answer_of_a_job_is_deleted_on_its_page(server: Live) -> None:
    headers = await cookie_of(server, "user", "cacher")
    body = chat("cached?") | {"temperature": 0}
    ids = list[str]()
    for _ in range(2):
        async with server.http.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as response:
            ids.append(response.headers["x-signoff-job"])
            state = response.headers["x-signoff-cache"]
        await server.services.caches.responses.until_stored()
    assert state == "hit"
    text = await page(server, f"/dashboard/jobs/{ids[1]}", headers)
    key = re.search(r'name="key" value="([^"]+)"', text)
    assert key is not None
    form = {"key": key[1]}
    assert (await submit(server, "/dashboard/cache/clear", form, headers))[0] == 303
    async with server.http.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as response:
        assert response.headers["x-signoff-cache"] == "miss"


async def test_a_token_is_shown_once_and_refused_after_it_is_revoked(server: Live) -> None:
    headers = await cookie_of(server, "user", "holder")
    form = {"name": "for my <app>", "role": "", "days": "7"}
    text = await secret_page(server, "/dashboard/people/tokens", form, headers)
    token = re.search(r"sg_\w+", text)
    assert token is not None
    assert (await server.ask("GET", "/jobs", token[0]))[0] == 200
    text = await page(server, "/dashboard/people", headers)
    assert token[0] not in text
    assert "for my &lt;app&gt;" in text
    revoke = re.search(r'action="(/dashboard/people/tokens/\d+/revoke)"', text)
    assert revoke is not None
    assert (await submit(server, revoke[1], {}, headers))[0] == 303
    await until(lambda: refused(server, token[0]))
    bad = await submit(server, "/dashboard/people/tokens", {"days": "-1"}, headers)
    assert (bad[0], "`days`" in bad[1]) == (400, True)


async def secret_page(server: Live, path: str, form: dict[str, str], headers: dict[str, str]) -> str:
    """Submit a form that makes a secret, and return the page that shows it once; a reload does not show it again."""
    async with server.http.post(server.url + path, data=form, headers=headers, allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (303, "/dashboard/people")
        assert "HttpOnly" in response.headers["set-cookie"]
        secret = response.headers["set-cookie"].split(";")[0]
    server.http.cookie_jar.clear()
    with_secret = headers | {"cookie": f"{headers['cookie']}; {secret}"}
    async with server.http.get(f"{server.url}/dashboard/people", headers=with_secret) as response:
        text = await response.text()
        assert "Max-Age=0" in response.headers["set-cookie"], "the browser forgets the secret"
    assert "not shown again" in text
    assert "not shown again" not in await page(server, "/dashboard/people", headers)
    return text


async def refused(server: Live, token: str) -> bool | None:
    return (await server.ask("GET", "/jobs", token))[0] == 401 or None


async def test_an_admin_creates_a_user_whose_link_works_and_disables_them(server: Live) -> None:
    headers = await cookie_of(server, "admin", "founder")
    form = {"email": "new@example.com", "role": "reviewer"}
    text = await secret_page(server, "/dashboard/people/users", form, headers)
    link = re.search(r"http[^<]*/signin/\w+", text)
    assert link is not None
    async with server.http.get(link[0], allow_redirects=False) as response:
        cookie = response.headers["set-cookie"].split(";")[0]
    server.http.cookie_jar.clear()
    assert "<h2>Waiting</h2>" in await page(server, "/dashboard/review", {"cookie": cookie})
    again = await submit(server, "/dashboard/people/users", form | {"role": "admin"}, headers)
    assert again[0] == 409, "the form of a new user does not change another one"

    user = await server.services.store.people.user("new@example.com")
    path = f"/dashboard/people/users/{user.id}"
    await submit(server, path, {"action": "disable"}, headers)
    assert "disabled" in await page(server, "/dashboard/people", headers)
    await until(lambda: signed_out(server, cookie))


async def signed_out(server: Live, cookie: str) -> bool | None:
    return (await server.ask("GET", "/jobs", headers={"cookie": cookie}))[0] == 401 or None


async def test_a_user_manages_only_the_own_tokens(server: Live) -> None:
    other = await server.token("user", "victim@example.com")
    headers = await cookie_of(server, "user", "curious")
    text = await page(server, "/dashboard/people", headers)
    assert "victim@example.com" not in text
    token = await server.services.caches.callers.identify(other, "api", server.services.clock())
    path = f"/dashboard/people/tokens/{token.token_id}/revoke"
    assert (await submit(server, path, {}, headers))[0] == 404
    assert (await server.ask("GET", "/jobs", other))[0] == 200
