"""The page of jobs: filters in the address, a search by text, and saved views."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from signoff.stores.schema import calls
from signoff.work.jobs import search
from support.live_server import Live, chat, live
from support.pages import Browser, signed_in, words
from support.stores import execute

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live(tmp_path_factory.mktemp("jobs"), log_before_answer=True) as server:
        for name in ("other", "third"):
            await server.model(name)
        yield server


async def sent(user: Browser, text: str, model: str = "echo") -> str:
    """Ask a model, and return the id of the job."""
    url, body = f"{user.server.url}/v1/chat/completions", chat(text, model)
    async with user.server.http.post(url, json=body, headers=user.headers) as response:
        assert response.status == 200
        return response.headers["x-signoff-job"]


def listed(page: str) -> list[str]:
    """Return the requests on the page, in order."""
    return re.findall(r'class="job-link" href="[^"]*">([^<]*)<', page)


async def test_jobs_are_found_by_text_target_door_user_and_time(server: Live) -> None:
    reviewer, ann = await signed_in(server, "reviewer", "finder"), await signed_in(server, "user", "ann")
    for text, model in (("red apple", "echo"), ("Red BRICK", "other"), ("blue sky", "other")):
        await sent(ann, text, model)
    who = "user=ann@example.com"
    for query, expected in (
        (f"{who}&q=RED", ["Red BRICK", "red apple"]),
        (f"{who}&q=red&target=other", ["Red BRICK"]),
        (f"{who}&door=openai", ["blue sky", "Red BRICK", "red apple"]),
        (f"{who}&door=native", []),
        (f"{who}&model=echo", ["red apple"]),
        (f"{who}&status=success&q=sky", ["blue sky"]),
        (f"{who}&since=2100-01-01T00:00", []),
        (f"{who}&since=2020-01-01T00:00&until=2100-01-01T00:00", ["blue sky", "Red BRICK", "red apple"]),
        (f"{who}&until=2020-01-01", []),
        ("user=nobody@example.com", []),
    ):
        assert listed(await reviewer.open(f"/dashboard/jobs?{query}")) == expected, query
    first = await sent(ann, "by its id")
    assert listed(await ann.open(f"/dashboard/jobs?q={first[:20]}")) == ["by its id"]
    await reviewer.open("/dashboard/jobs?since=yesterday", status=400)
    await reviewer.open("/dashboard/jobs?token=x", status=400)


async def test_a_job_with_a_time_long_before_its_id_does_not_end_a_search(server: Live) -> None:
    reviewer, bob = await signed_in(server, "reviewer", "seeker"), await signed_in(server, "user", "bob")
    await sent(bob, "the first")
    misdated = await sent(bob, "the second")
    await execute(server.services.store, sa.update(calls).where(calls.c.id == misdated).values(created_at=0))
    page = await reviewer.open("/dashboard/jobs?user=bob@example.com&since=2020-01-01T00:00")
    assert listed(page) == ["the first"]


async def test_a_search_does_not_find_what_the_caller_may_not_see(server: Live) -> None:
    bob, eve = await signed_in(server, "user", "bob"), await signed_in(server, "user", "eve")
    await sent(bob, "a hidden thing")
    await server.model("reviewed", review="always")
    form = {"left": "reviewed", "message": "plain"}
    location = await eve.submit("/dashboard/playground", **form)
    token, job_id = await server.token("admin", "reader@example.com"), location.partition("left=")[2].partition("#")[0]
    await server.job_when(token, job_id, lambda job: job["status"] == "human")
    await server.ask("POST", "/reviewJob", token, json={"id": job_id, "status": "human", "response": "unreleased"})
    assert listed(await eve.open("/dashboard/jobs?q=hidden")) == []
    assert listed(await eve.open("/dashboard/jobs?q=unreleased")) == []
    assert listed(await eve.open("/dashboard/jobs?q=plain")) == ["plain"]
    await eve.open("/dashboard/jobs?user=bob@example.com", status=403)


@pytest.mark.parametrize(
    "bounds", [{"MAX_EXAMINED": 5}, {"MAX_EXAMINED_BYTES": 90_000}, {"MAX_US": -1, "PAGE": 5}], ids=str
)
async def test_a_long_search_goes_on_where_it_stopped(
    bounds: dict[str, int], server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await signed_in(server, "user", f"patient-{next(iter(bounds)).lower()}")
    for number in range(7):
        await sent(user, "needle" if number in {0, 1} else f"hay {number} {'y' * 10_000}")
    for name, value in bounds.items():
        monkeypatch.setattr(search, name, value)
    page = await user.open("/dashboard/jobs?q=needle")
    assert listed(page) == []
    assert "Looked at 5 jobs, back to" in words(page)
    older = re.search(r'href="([^"]+)">Search older jobs', page)
    assert older is not None
    page = await user.open(older[1].replace("&amp;", "&"))
    assert listed(page) == ["needle", "needle"]
    assert "Search older jobs" not in page


async def test_views_are_saved_for_the_user_alone_and_deleted(server: Live) -> None:
    user, other = await signed_in(server, "user", "keeper-of-views"), await signed_in(server, "user", "another")
    name = 'my "failed" <jobs>'
    query = "status=fail&q=a%26b&after=x&nonsense=1"
    location = await user.submit("/dashboard/jobs/views", name=name, query=query)
    assert location == "/dashboard/jobs?status=fail&q=a%26b"
    page = await user.open("/dashboard/jobs")
    link = re.search(r'href="([^"]+)">my &#34;failed&#34; &lt;jobs&gt;<', page)
    assert link is not None
    shown = await user.open(link[1].replace("&amp;", "&"))
    assert 'value="a&amp;b"' in shown
    assert "my &#34;" not in await other.open("/dashboard/jobs")
    await other.submit("/dashboard/jobs/views", status=404, name=name, action="delete")
    await user.submit("/dashboard/jobs/views", status=400, name=" ", query=query)
    await user.submit("/dashboard/jobs/views", status=403, headers={"sec-fetch-site": "cross-site"}, name="x", query="")
    await user.submit("/dashboard/jobs/views", name=name, query="status=fail", action="delete")
    assert "my &#34;" not in await user.open("/dashboard/jobs")


async def test_the_most_expensive_jobs_come_first_and_the_steps_of_a_run_are_listed(server: Live) -> None:
    admin = await signed_in(server, "admin", "payer")
    await admin.api("PUT", "/api/prices", json={"model": "third", "input": "1", "output": "1"})
    for text in ("short", "much longer than the others are", "middle one"):
        await sent(admin, text, "third")
    page = await admin.open("/dashboard/jobs?target=third&order=cost")
    assert listed(page) == ["much longer than the others are", "middle one", "short"]

    await admin.api("POST", "/api/prompts", status=201, json={"name": "wrap", "body": "Say {text}", "model": "echo"})
    await admin.api("POST", "/api/pipelines", status=201, json={"name": "twice", "body": "wrap(wrap(text))"})
    location = await admin.submit("/dashboard/pipelines/twice/run", **{"argument.text": "hello"})
    job_id = location.rpartition("/")[2]
    token = await server.token("admin", "reader@example.com")
    await server.job_when(token, job_id, lambda job: job["status"] == "success")
    assert listed(await admin.open(f"/dashboard/jobs?run={quote(job_id)}")) == ["Say Say hello", "Say hello"]
