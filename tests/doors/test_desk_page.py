"""The page of the review desk: the queue, one answer with everything that is signed off, and its forms."""

from __future__ import annotations

import difflib
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from doors.test_session import session_headers
from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.dialects.answer import answer_text
from signoff.core.job import Job
from signoff.core.reviews.ruling import Ruling
from signoff.dashboard.difference import MAX_LINES, difference
from support.live_server import Live, live
from support.stores import a_step, leased

pytestmark = pytest.mark.anyio


async def test_an_answer_is_edited_and_approved_on_the_desk(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        # given a held job whose input contains a script
        token = await server.token()
        body = {"input": "<script>alert(1)</script> & more", "model": "echo"}
        _, response = await server.ask("POST", "/enqueue", token, json=body)
        reviewer = await server.token("reviewer")
        await server.job_when(reviewer, response["job_id"], lambda job: job["status"] == "human")
        # when a reviewer opens the page, the script is escaped
        headers = await session_headers(server)
        _, page = await server.ask("GET", f"/dashboard/review/{response['job_id']}", headers=headers)
        assert "<script>" not in page
        assert "&lt;script&gt;" in page
        # and when the reviewer submits the form with another answer
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
        form = fields | {"answer": "line one\r\nline two", "verdict": "approve", "reason": ""}
        headers |= {"sec-fetch-site": "same-origin"}
        status, _ = await server.ask("POST", "/dashboard/decide", data=form, headers=headers, allow_redirects=False)
        assert status == 303
        _, job = await server.ask("GET", f"/job?id={response['job_id']}", token)
        assert job["response"]["choices"][0]["message"]["content"] == "line one\nline two"
        # then a second submit is a conflict
        status, _ = await server.ask("POST", "/dashboard/decide", data=form, headers=headers, allow_redirects=False)
        assert status == 409


async def test_binary_content_is_shown_by_its_type_and_size(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        # given a held job with audio as its input and its answer
        headers, store = await session_headers(server), server.services.store
        sound = encode_binary(BinaryBody("audio/wav; rate=8000", b"\0" * 1000))
        job = await leased(store, body=sound)
        await store.jobs.transition(job.id, a_step("hold", changes={"response": sound}))
        # when a reviewer opens the page and approves the answer as it is shown
        _, page = await server.ask("GET", f"/dashboard/review/{job.id}", headers=headers)
        assert page.count("audio/wav, 1000 bytes") >= 4
        assert "AAAA" not in page
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
        form = fields | {"answer": "audio/wav, 1000 bytes", "verdict": "approve", "reason": ""}
        headers |= {"sec-fetch-site": "same-origin"}
        status, _ = await server.ask("POST", "/dashboard/decide", data=form, headers=headers, allow_redirects=False)
        # then nothing is edited
        assert status == 303
        assert (await store.jobs.get(job.id)).response == sound


async def held_page(server: Live, **fields: Any) -> tuple[Job, str, dict[str, str]]:
    """Hold a job with these fields; return it, the page of a reviewer, and the hidden fields of its form."""
    store = server.services.store
    job = await leased(store, **{name: value for name, value in fields.items() if name != "response"})
    job = await store.jobs.transition(job.id, a_step("hold", changes={"response": fields["response"]}))
    _, page = await server.ask("GET", f"/dashboard/review/{job.id}", headers=await session_headers(server))
    return job, page, dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))


async def decide_by_form(server: Live, form: dict[str, str]) -> tuple[int, Any]:
    headers = await session_headers(server) | {"sec-fetch-site": "same-origin"}
    return await server.ask("POST", "/dashboard/decide", data=form, headers=headers, allow_redirects=False)


CALL = {"id": "call_1", "type": "function", "function": {"name": "pay", "arguments": '{"to":"M. Malory"}'}}


async def test_a_reviewer_sees_everything_that_is_signed_off(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        messages = [
            {"role": "system", "content": "You are the SYSTEM prompt."},
            {"role": "user", "content": [{"type": "text", "text": "FIRST question"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "TOOL result"},
            {"role": "user", "content": "LAST question"},
        ]
        body = {"model": "m", "messages": messages, "tools": [{"name": "TOOLDEFINITION"}], "temperature": 0.25}
        answer = {"choices": [{"message": {"role": "assistant", "content": "TEXT", "tool_calls": [CALL]}}]}
        _, page, _ = await held_page(server, body=json.dumps(body).encode(), response=json.dumps(answer).encode())
        for text in ("SYSTEM prompt", "FIRST", "TOOL result", "LAST", "TOOLDEFINITION", "0.25", "TEXT"):
            assert text in page
        assert page.count("M. Malory") == 3, "the call in the request, the one in the answer, and the field of the form"


async def test_characters_that_change_the_order_or_take_no_room_are_marked_and_sent_as_they_are(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        call = CALL | {"function": {"name": "pay", "arguments": json.dumps({"to": "M\u200bX"}, ensure_ascii=False)}}
        messages = [{"role": "user", "content": "pay <b>\u2066now\u2069"}]
        body = {"model": "m", "messages": messages, "other": "setting\u061c"}
        answer = {"choices": [{"message": {"role": "assistant", "content": "to \u202egnp.exe", "tool_calls": [call]}}]}
        response = json.dumps(answer, ensure_ascii=False).encode()
        job, page, fields = await held_page(
            server, body=json.dumps(body, ensure_ascii=False).encode(), response=response
        )
        shown = re.sub(r"<textarea.*?</textarea>|<input[^>]*>", "", page, flags=re.DOTALL)
        assert not re.search("[\u2066\u2069\u202e\u200b\u061c]", shown)
        assert 'pay &lt;b&gt;<span class="unseen" title="LEFT-TO-RIGHT ISOLATE">⟨U+2066⟩</span>now' in page
        assert shown.count("⟨U+2066⟩now") == 0 == shown.count("⟨U+202E⟩gnp"), "each mark is an element"
        assert shown.count(">⟨U+202E⟩<") == 2, "in the answer, and in the whole answer as JSON"
        assert shown.count(">⟨U+200B⟩<") == 2, "in the whole answer, and beside the field of the argument"
        assert shown.count(">⟨U+061C⟩<") == 2, "in the settings of the request, and in their summary"
        row = await server.ask("GET", "/dashboard/review/queue", headers=await session_headers(server))
        assert ">⟨U+2066⟩<" in row[1]
        form = fields | {"answer": "to \u202egnp.exe", "verdict": "approve", "reason": ""}
        assert (await decide_by_form(server, form | {"call0.do": "send"}))[0] == 303
        assert (await server.services.store.jobs.get(job.id)).response == response
        job_page = (await server.ask("GET", f"/dashboard/jobs/{job.id}", headers=await session_headers(server)))[1]
        assert ">⟨U+202E⟩<" in job_page
        assert ">⟨U+2066⟩<" in job_page


async def test_a_saved_draft_is_shown_and_is_what_an_approval_sends(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        store = server.services.store
        job, _, before = await held_page(server, response=b'"of the model"')
        draft = {"id": job.id, "status": "human", "response": "DRAFT", "payload": {"input": "NEW QUESTION"}}
        assert (await server.ask("POST", "/reviewJob", await server.token("admin"), json=draft))[0] == 200
        # a form that was loaded before the draft was saved decides nothing
        status, _ = await decide_by_form(server, before | {"answer": "of the model", "verdict": "approve"})
        assert status == 409
        _, page = await server.ask("GET", f"/dashboard/review/{job.id}", headers=await session_headers(server))
        assert "Saved draft of the answer" in page
        assert page.count("DRAFT") == 2, "the difference, and the field"
        assert "NEW QUESTION" in page
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
        assert (await decide_by_form(server, fields | {"answer": "DRAFT", "verdict": "approve"}))[0] == 303
        decided = await store.jobs.get(job.id)
        assert (decided.status, answer_text(decided.response)) == ("success", "DRAFT")


async def test_a_draft_of_the_request_is_what_is_asked_again(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        job, *_ = await held_page(server, response=b'"of the model"', target="echo", model="echo")
        admin = await server.token("admin")
        draft = {"id": job.id, "status": "human", "payload": {"messages": [{"role": "user", "content": "NEW"}]}}
        assert (await server.ask("POST", "/reviewJob", admin, json=draft))[0] == 200
        assert (await server.ask("POST", "/reviewJob", admin, json={"id": job.id, "status": "bot"}))[0] == 200
        assert b"NEW" in (await server.services.store.jobs.get(job.id)).body


async def test_a_draft_of_somebody_else_is_not_signed_off_unseen(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        job, *_ = await held_page(server, response=b'"of the model"')
        draft = {"id": job.id, "status": "human", "response": "DRAFT"}
        assert (await server.ask("POST", "/reviewJob", await server.token("reviewer"), json=draft))[0] == 200
        admin = await server.token("admin")
        approval = {"id": job.id, "status": "success"}
        assert (await server.ask("POST", "/reviewJob", admin, json=approval))[0] == 409
        assert (await server.ask("POST", "/reviewJob", admin, json=approval | {"response": "DRAFT"}))[0] == 200


async def test_a_rejection_needs_a_reason(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        job, _, fields = await held_page(server, response=b'"x"')
        for reason in ("", "  "):
            status, _ = await decide_by_form(server, fields | {"answer": "x", "verdict": "reject", "reason": reason})
            assert status == 400
        assert (await server.services.store.jobs.get(job.id)).status == "human"
        too_long = [{"verdict": "reject", "reason": "n" * 10_001}, {"verdict": "redo", "note": "n" * 10_001}]
        for each in too_long:
            assert (await decide_by_form(server, fields | {"answer": "x"} | each))[0] == 400
        form = fields | {"answer": "x", "verdict": "reject", "reason": "no"}
        assert (await decide_by_form(server, form))[0] == 303


async def test_a_page_is_bounded_and_says_that_a_text_is_cut(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 1_000_000}]}).encode()
        job, page, _ = await held_page(server, body=body, response=b'"x"')
        assert len(page) < 200_000
        assert f'<a href="/api/jobs/{job.id}">whole job</a>' in page


# The desk


async def desk_form(server: Live, path: str, form: dict[str, str], headers: dict[str, str]) -> tuple[int, str]:
    """Submit a form of the desk; return the status, and the address of the redirect or the page."""
    headers = headers | {"sec-fetch-site": "same-origin"}
    async with server.http.post(server.url + path, data=form, headers=headers, allow_redirects=False) as response:
        text = await response.text()
        return response.status, response.headers["location"] if response.status == 303 else text


async def held(server: Live, number: int) -> list[Job]:
    """Return held jobs, oldest first."""
    store, jobs = server.services.store, list[Job]()
    for index in range(number):
        job = await leased(store, body=json.dumps({"input": f"question {index}"}).encode())
        jobs.append(await store.jobs.transition(job.id, a_step("hold", changes={"response": b'"answer"'})))
    return jobs


async def test_the_next_answer_is_opened_for_one_reviewer_and_the_next_one_for_another(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        first, second = await held(server, 2)
        ann, bob = await session_headers(server), await session_headers(server, "reviewer")
        assert await desk_form(server, "/dashboard/review/next", {}, ann) == (303, f"/dashboard/review/{first.id}")
        assert await desk_form(server, "/dashboard/review/next", {}, bob) == (303, f"/dashboard/review/{second.id}")
        _, page = await server.ask("GET", f"/dashboard/review/{first.id}", headers=bob)
        assert "admin@example.com has it open" in page
        _, page = await server.ask("GET", f"/dashboard/review/{first.id}", headers=ann)
        assert "You have this answer" in page
        # and a verdict of somebody else is refused with the name of the reviewer
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
        status, text = await desk_form(
            server, "/dashboard/decide", fields | {"verdict": "approve", "answer": "answer"}, bob
        )
        assert (status, "admin@example.com" in text) == (409, True), text


async def test_a_verdict_leads_to_the_next_answer_and_is_undone_from_there(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        first, second = await held(server, 2)
        headers = await session_headers(server)
        _, page = await server.ask("GET", f"/dashboard/review/{first.id}", headers=headers)
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
        form = fields | {"verdict": "approve", "answer": "answer"}
        status, location = await desk_form(server, "/dashboard/decide", form, headers)
        assert (status, location) == (303, f"/dashboard/review/{second.id}?decided={first.id}")
        _, page = await server.ask("GET", location, headers=headers)
        assert f'action="/dashboard/review/{first.id}/undo"' in page
        assert "<progress" in page
        assert await desk_form(server, f"/dashboard/review/{first.id}/undo", {}, headers) == (
            303,
            f"/dashboard/review/{first.id}",
        )
        undone = await server.services.store.jobs.get(first.id)
        assert (undone.status, undone.decision, undone.round) == ("human", None, 2)


async def test_skipped_answers_are_given_back_and_not_offered_again(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        first, second = await held(server, 2)
        headers = await session_headers(server)
        await desk_form(server, "/dashboard/review/next", {}, headers)
        _, location = await desk_form(server, f"/dashboard/review/{first.id}/skip", {"skip": ""}, headers)
        assert location == f"/dashboard/review/{second.id}?skip={first.id}"
        assert (await server.services.store.jobs.get(first.id)).review_lease is None
        _, location = await desk_form(server, f"/dashboard/review/{second.id}/skip", {"skip": first.id}, headers)
        assert location.startswith("/dashboard/review?")


async def test_a_draft_is_saved_while_one_types_and_its_difference_is_shown(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        job, _, fields = await held_page(server, response=b'"the old <b>text</b>"')
        headers = await session_headers(server)
        form = {"round": fields["round"], "answer": "the new <b>text</b>"}
        status, fragment = await desk_form(server, f"/dashboard/review/{job.id}/draft", form, headers)
        assert status == 200
        assert "the <del>old</del><ins>new</ins> &lt;b&gt;text&lt;/b&gt;" in fragment
        seen = re.search(r'data-seen="([^"]+)"', fragment)
        assert seen is not None
        form = fields | {"seen": seen[1], "answer": "the new <b>text</b>", "verdict": "approve"}
        assert (await desk_form(server, "/dashboard/decide", form, headers))[0] == 303
        assert answer_text((await server.services.store.jobs.get(job.id)).response) == "the new <b>text</b>"


async def test_the_draft_of_one_of_several_voters_is_not_shown_to_the_others(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        store, ruling = server.services.store, Ruling(outcome="hold", votes=2)
        job = await leased(store)
        job = await store.jobs.transition(job.id, a_step("hold", changes={"response": b'"x"', "ruling": ruling}))
        ann, bob = await session_headers(server), await session_headers(server, "reviewer")
        address = f"/dashboard/review/{job.id}"
        await desk_form(server, f"{address}/open", {}, ann)
        draft = {"round": str(job.round), "answer": "SECRET DRAFT"}
        assert (await desk_form(server, f"{address}/draft", draft, ann))[0] == 200
        _, page_of_ann = await server.ask("GET", address, headers=ann)
        _, page_of_bob = await server.ask("GET", address, headers=bob)
        assert "SECRET DRAFT" in page_of_ann
        assert "SECRET DRAFT" not in page_of_bob


async def test_a_voter_does_not_send_an_answer_whose_own_draft_another_one_has_replaced(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        store, ruling = server.services.store, Ruling(outcome="hold", votes=2)
        job = await leased(store)
        job = await store.jobs.transition(job.id, a_step("hold", changes={"response": b'"x"', "ruling": ruling}))
        ann, bob = [await server.token("reviewer", f"{name}@example.com") for name in ("ann", "bob")]
        address, approval = f"/api/reviews/{job.id}", {"verdict": "approve", "round": job.round}
        for name, token in (("ann", ann), ("bob", bob)):
            assert (await server.ask("POST", f"{address}/open", token))[0] == 200
            draft = {"round": job.round, "response": f"SECRET of {name}"}
            assert (await server.ask("POST", f"{address}/draft", token, json=draft))[0] == 200
            for path in (address, f"/api/jobs/{job.id}/events"):
                _, seen = await server.ask("GET", path, ann if token == bob else bob)
                assert f"SECRET of {name}" not in str(seen), path
            await server.ask("POST", f"{address}/leave", token)
        # the answer that ann has opened again has no draft of bob's, and not hers either
        assert (await server.ask("POST", f"{address}/open", ann))[1]["draft"] is None
        status, answer = await server.ask("POST", f"{address}/decide", ann, json=approval)
        assert (status, "Your draft is not stored any more" in str(answer)) == (409, True)
        edited = approval | {"response": "mine"}
        assert (await server.ask("POST", f"{address}/decide", ann, json=edited))[0] == 200


async def test_an_instruction_goes_to_the_model_and_a_reason_to_the_caller(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0) as server:
        body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hi"}]}).encode()
        job, _, fields = await held_page(server, response=b'"x"', target="echo", model="echo", body=body)
        headers = await session_headers(server)
        form = fields | {"verdict": "redo", "note": "Say it in two words."}
        assert (await desk_form(server, "/dashboard/decide", form, headers))[0] == 303
        assert b"Say it in two words." in (await server.services.store.jobs.get(job.id)).body
        job, _, fields = await held_page(server, response=b'"x"')
        form = fields | {"verdict": "reject", "reason": "Tone", "note": "too curt"}
        assert (await desk_form(server, "/dashboard/decide", form, headers))[0] == 303
        assert (await server.services.store.jobs.get(job.id)).error.message == "Tone: too curt"


async def test_the_desk_shows_the_signals_and_not_the_rule_that_matched(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        store = server.services.store
        ruling = Ruling(
            outcome="hold", policy="SECRET-POLICY", version=3, rule=7, signals={"signals.logprob_min": -3.92}
        )
        job = await leased(store)
        job = await store.jobs.transition(job.id, a_step("hold", changes={"response": b'"x"', "ruling": ruling}))
        _, page = await server.ask("GET", f"/dashboard/review/{job.id}", headers=await session_headers(server))
        assert "-3.92" in page
        assert "SECRET-POLICY" not in page


async def test_a_signal_that_is_an_object_is_folded_and_shown_as_json(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        headers = await session_headers(server)

        async def queue_with(signals: dict[str, Any]) -> tuple[str, str]:
            """Hold an answer with these signals; return its page and the queue."""
            job = await leased(server.services.store)
            changes = {"response": b'"x"', "ruling": Ruling(outcome="hold", signals=signals)}
            job = await server.services.store.jobs.transition(job.id, a_step("hold", changes=changes))
            paths = f"/dashboard/review/{job.id}", "/dashboard/review/queue"
            first, second = [(await server.ask("GET", path, headers=headers))[1] for path in paths]
            return first, second

        moderation = {"flagged": True, "categories": {"hate": False, "note\u202e": None}}
        page, queue = await queue_with({"signals.moderation": moderation})
        shown = page.partition('<table class="sig">')[2].partition("<pre")[2].partition(">")[2].partition("</pre>")[0]
        text = html.unescape(re.sub(r"<[^>]*>", "", shown)).replace("⟨U+202E⟩", "\u202e")
        assert json.loads(text) == moderation
        assert "2 values</span></summary>" in page
        assert "flagged" not in queue, "a row of the list has room for a number"

        page, queue = await queue_with(
            {"signals.moderation": moderation, "signals.judge": 0.123456, "x": True, "y": "z" * 1001}
        )
        table = page.partition('<table class="sig">')[2].partition("</table>")[0]
        assert re.findall(r'<td class="num">(.*?)</td>', table) == ["0.123", "true"]
        assert "1,001 characters</span></summary>" in table
        assert '<span class="mono">judge</span> 0.123' in queue


@pytest.mark.parametrize("length", [0, 1, 2000, MAX_LINES + 1])
def test_a_difference_leads_from_one_text_to_the_other_however_long_they_are(length: int) -> None:
    old = "".join(f"line {number}\n" for number in range(length))
    new = old.replace("line 1", "row 1") + "end"
    changes = difference(old, new)
    assert "".join(change.text for change in changes if change.kind != "added") == old
    assert "".join(change.text for change in changes if change.kind != "removed") == new


@pytest.mark.parametrize(("old", "new"), [("a " * 740, "b " * 740), ("a,b," * 300, "c,d," * 300), ("a\n\n", "b\n\n")])
def test_the_comparison_of_texts_that_repeat_themselves_is_bounded(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a comparison walks the places at which the other text has each piece
    places = list[int]()

    class Counted(difflib.SequenceMatcher[str]):
        def find_longest_match(self, *bounds: Any) -> Any:
            low, high = bounds[0], bounds[1]
            places.extend(len(self.b2j.get(piece, ())) for piece in self.a[low:high])
            return super().find_longest_match(*bounds)

    monkeypatch.setattr(difflib, "SequenceMatcher", Counted)
    changes = difference(old, new)
    assert "".join(change.text for change in changes if change.kind != "removed") == new
    assert sum(places) < 5_000_000
