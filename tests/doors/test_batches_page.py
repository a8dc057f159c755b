"""The pages of batches: without JavaScript, with faults in the file, and for several users."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest

from signoff.work.batches import manage
from support.batches import CHAT, a_line, as_file
from support.live_server import Live, live, until
from support.pages import Browser, cells, signed_in, words

pytestmark = pytest.mark.anyio
HOSTILE = "<img src=x onerror=alert(1)>\"'\u202e.jsonl"


@pytest.fixture(scope="module", name="server")
async def start_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    folder = tmp_path_factory.mktemp("batches")
    async with live(folder, max_file_bytes=900_000, max_body_bytes=20_000, hold_seconds=0.01) as server:
        yield server


def form_of(content: bytes, filename: str = "in.jsonl", endpoint: str = CHAT) -> aiohttp.FormData:
    form = aiohttp.FormData({"purpose": "batch", "endpoint": endpoint})
    form.add_field("file", content, filename=filename, content_type="application/jsonl")
    return form


async def upload(user: Browser, content: bytes, status: int = 303, **more: str) -> str:
    """Send the form; return the address of the batch, or the page that says what is wrong."""
    url, data = user.server.url + "/dashboard/batches", form_of(content, **more)
    async with user.server.http.post(url, data=data, headers=user.headers, allow_redirects=False) as response:
        text = await response.text()
        assert response.status == status, text
        return response.headers["location"] if status == 303 else text


async def ended(user: Browser, address: str) -> str:
    """Return the page of a batch once it has ended."""

    async def look() -> str | None:
        page = await user.open(f"{address}/live")
        return None if "hx-trigger" in page else page

    return await until(look)


async def test_a_file_is_uploaded_answered_and_downloaded(server: Live) -> None:
    owner = await signed_in(server, "user", "owner")
    lines = [a_line(str(number), f"text {number}") for number in range(60)]
    address = await upload(owner, as_file(*lines), filename=HOSTILE)
    page = await ended(owner, address)
    assert "<img" not in page
    assert "Completed" in page

    # the counts and the files are those of the API
    batch = await owner.api("GET", f"/v1/batches/{address.rpartition('/')[2]}")
    counts = dict(re.findall(r'id="(\w+)">([\d,]+)<', page))
    assert batch["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
    assert (counts["total"], counts["completed"], counts["left"]) == ("60", "60", "0")
    [link] = re.findall(r'href="([^"]+)" download>.*?Download the output', page)
    status, content = await server.ask("GET", link, headers=owner.headers)
    assert (status, link) == (200, f"/v1/files/{batch['output_file_id']}/content")
    assert [json.loads(line)["custom_id"] for line in content.splitlines()] == [str(number) for number in range(60)]

    # its jobs are one click away, in the order of the file, in pages
    [jobs] = re.findall(r'href="([^"]+)">Its jobs', page)
    first = await owner.open(jobs)
    [older] = re.findall(r'href="([^"]+after=[^"]+)">', first)
    second = await owner.open(html.unescape(older))
    questions = [text for each in (first, second) for text in re.findall(r"text \d+", each)]
    assert list(dict.fromkeys(questions)) == [f"text {number}" for number in range(60)]


async def test_the_faults_of_a_file_are_shown_with_their_lines(server: Live) -> None:
    owner = await signed_in(server, "user", "faulty")
    lines = [a_line("a"), "<b>no json", a_line("a"), a_line("b", url="/v1/embeddings")]
    page = await ended(owner, await upload(owner, as_file(*lines)))
    assert "Not valid" in page
    for line, code in (("2", "invalid_json_line"), ("3", "duplicate_custom_id"), ("4", "invalid_url")):
        assert cells(page, line)[-1].split(" · ")[0].endswith(code)
    assert "4 faults" not in words(await owner.open("/dashboard/batches"))
    assert "3 faults" in words(await owner.open("/dashboard/batches"))


async def test_what_is_wrong_with_a_form_is_said_in_it(server: Live) -> None:
    owner = await signed_in(server, "user", "careless")
    empty = '--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n--b--\r\n'  # as browsers do
    headers = owner.headers | {"content-type": "multipart/form-data; boundary=b"}
    status, page = await server.ask("POST", "/dashboard/batches", data=empty, headers=headers)
    assert (status, "Choose a file" in page) == (400, True)
    assert "valid `endpoint`" in await upload(owner, b"{}", status=400, endpoint="/etc/passwd")
    assert "max_file_bytes" in await upload(owner, b" " * 900_001, status=413)
    foreign = owner.headers | {"sec-fetch-site": "cross-site"}
    async with server.http.post(server.url + "/dashboard/batches", data=form_of(b"{}"), headers=foreign) as response:
        assert response.status == 403


async def test_a_file_may_be_larger_than_other_bodies(server: Live) -> None:
    owner = await signed_in(server, "user", "large")
    lines = [a_line(str(number), "x" * 1000) for number in range(100)]
    page = await ended(owner, await upload(owner, as_file(*lines)))
    assert 'id="completed">100<' in page


async def test_users_see_their_own_batches_and_admins_all(server: Live) -> None:
    owner, other = await signed_in(server, "user", "ann"), await signed_in(server, "user", "bob")
    admin = await signed_in(server, "admin", "ada")
    address = await upload(owner, as_file(a_line("a")), filename="annas.jsonl")
    await ended(owner, address)
    assert "annas.jsonl" in await owner.open("/dashboard/batches")
    assert "annas.jsonl" not in await other.open("/dashboard/batches")
    assert "ann@example.com" in cells(await admin.open("/dashboard/batches"), "annas.jsonl")
    batch_id = address.rpartition("/")[2]
    for path in (address, f"{address}/live", f"/dashboard/jobs?batch={batch_id}"):
        await other.open(path, status=404)
        await admin.open(path)
    await other.submit(f"{address}/cancel", status=404)


async def test_a_batch_is_cancelled(server: Live) -> None:
    owner = await signed_in(server, "user", "hasty")
    address = await upload(owner, as_file(*(a_line(str(number), model="echo/delay=0.2") for number in range(300))))
    assert await owner.submit(f"{address}/cancel") == address
    page = await ended(owner, address)
    assert ">Cancelled<" in page
    assert await owner.submit(f"{address}/cancel") == address  # it has ended: the page says how


async def test_a_held_line_is_counted_as_in_review(server: Live) -> None:
    await server.model("careful", review="always")
    owner = await signed_in(server, "user", "held")
    address = await upload(owner, as_file(a_line("a", model="careful")))

    async def look() -> str | None:
        page = await owner.open(address)
        return page if 'id="held">1<' in page else None

    assert "signed off" in await until(look)
    await owner.submit(f"{address}/cancel")


async def test_batches_of_anthropics_api_have_a_list_of_their_own(server: Live) -> None:
    owner = await signed_in(server, "user", "claude")
    params = {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    batch = await owner.api("POST", "/v1/messages/batches", json={"requests": [{"custom_id": "a", "params": params}]})
    page = await ended(owner, f"/dashboard/batches/{batch['id']}")
    [link] = re.findall(r'href="([^"]+)" download>.*?Download the output', page)
    async with server.http.get(server.url + link, headers=owner.headers) as response:
        assert json.loads(await response.read())["custom_id"] == "a"
    assert batch["id"] not in await owner.open("/dashboard/batches")
    assert batch["id"] in await owner.open("/dashboard/batches?api=anthropic")


async def test_the_form_obeys_the_bound_on_open_batches(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manage, "MAX_OPEN_BATCHES", 1)
    owner = await signed_in(server, "user", "busy")
    await server.model("careful", review="always")
    await upload(owner, as_file(a_line("a", model="careful")))
    page = await upload(owner, as_file(a_line("b")), status=429)
    assert "You have 1 batches that have not ended" in page
    assert len((await owner.api("GET", "/v1/files"))["data"]) == 1
