"""Feedback: rows for fine-tuning from the decisions on requests of every dialect."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from signoff.core.job import Decision, Event, Job
from signoff.core.reviews.feedback import Feedback, feedback_of, row_of
from signoff.core.reviews.receipt import ReceiptDraft, ReviewTimes, VerdictReceipt, verdict_receipt

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def a_job(path: str, request: Any, answer: Any, **more: Any) -> Job:
    plain = {"id": "j", "status": "success", "door": "openai", "lane": "now", "user_id": 1, "token_id": 1}
    texts = {"body": msgspec.json.encode(request), "response": msgspec.json.encode(answer)}
    return Job(**(plain | texts | {"target": "m", "model": "m", "path": path, "round": 1} | more))


def a_receipt(job: Job, verdict: str = "approve", round: int = 1) -> VerdictReceipt:  # noqa: A002
    draft = ReceiptDraft(
        before=msgspec.structs.replace(job, round=round, response=b"0"),
        after=job,
        decision=Decision(verdict=verdict, reviewer="ann"),  # type: ignore[arg-type]
    )
    place = {"seq": 3, "at": 0, "before": "", "key": ""}
    times = ReviewTimes(held_at=0, decided_at=0, open=())
    return verdict_receipt(draft, place, salt=b"", times=times, votes=())


def events_of(*rows: tuple[str, dict[str, Any]]) -> list[Event]:
    return [
        Event(job_id="j", seq=seq, verb=verb, actor="a", at=seq, data=data) for seq, (verb, data) in enumerate(rows, 1)
    ]


def an_edit(path: str, request: Any, original: Any, final: Any) -> Feedback:
    job = a_job(path, request, final)
    events = events_of(
        ("submit", {"round": 0}),
        ("hold", {"round": 1, "response": original}),
        ("decide", {"decision": {"verdict": "approve", "reviewer": "ann", "reason": "Typo."}}),
        ("approve", {"status": "success", "response": final}),
    )
    feedback = feedback_of(a_receipt(job), job, events)
    assert feedback is not None
    return feedback


def chat(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text, "refusal": None}, "finish_reason": "stop"}]}


MESSAGES = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1?"}]


def test_an_edited_chat_gives_a_supervised_row_and_a_preference_pair() -> None:
    feedback = an_edit("/v1/chat/completions", {"messages": MESSAGES, "tools": [TOOL]}, chat("3"), chat("2"))
    assert row_of(feedback, "supervised") == {
        "messages": [*MESSAGES, {"role": "assistant", "content": "2"}],
        "tools": [TOOL],
    }
    assert row_of(feedback, "preference") == {
        "input": {"messages": MESSAGES, "tools": [TOOL]},
        "preferred_output": [{"role": "assistant", "content": "2"}],
        "non_preferred_output": [{"role": "assistant", "content": "3"}],
    }
    assert row_of(feedback, "rejected") is None


def test_calls_of_tools_are_in_the_row() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    answer = {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": calls}}]}
    feedback = an_edit("/v1/chat/completions", {"messages": MESSAGES}, answer, answer)
    row = row_of(feedback, "supervised")
    assert row is not None
    assert row["messages"][-1] == {"role": "assistant", "tool_calls": calls}
    assert row_of(feedback, "preference") is None  # nothing was changed


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/completions"])
def test_other_dialects_are_translated_to_chats(path: str) -> None:
    user = {"role": "user", "content": "1+1?"}
    request, answers = {
        "/v1/messages": (
            {"model": "m", "max_tokens": 9, "messages": [user], "stream": True},
            [{"type": "message", "role": "assistant", "content": [{"type": "text", "text": text}]} for text in "32"],
        ),
        "/v1/responses": (
            {"model": "m", "input": "1+1?"},
            [
                {
                    "object": "response",
                    "id": "r",
                    "output": [
                        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
                    ],
                }
                for text in "32"
            ],
        ),
        "/v1/completions": ({"model": "m", "prompt": "1+1?"}, [{"choices": [{"text": text}]} for text in "32"]),
    }[path]
    row = row_of(an_edit(path, request, *answers), "preference")
    assert row is not None
    assert row["input"]["messages"] == [user]
    outputs = [row["preferred_output"], row["non_preferred_output"]]
    assert [[_text(message) for message in output] for output in outputs] == [["2"], ["3"]]


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_an_answer_that_is_no_chat_is_in_the_decisions_alone() -> None:
    feedback = an_edit("/v1/embeddings", {"input": "x"}, {"data": [1]}, {"data": [2]})
    assert [row_of(feedback, kind) for kind in ("supervised", "preference", "rejected")] == [None] * 3
    row = row_of(feedback, "decisions")
    assert row is not None
    decoded = msgspec.json.decode(msgspec.json.encode(row))
    assert (decoded["request"], decoded["answer"], decoded["final"]) == ({"input": "x"}, {"data": [1]}, {"data": [2]})
    assert (decoded["verdict"], decoded["reviewer"], decoded["reason"]) == ("approve", "ann", "Typo.")


def test_each_round_has_the_request_and_the_answer_that_it_was_about() -> None:
    requests = [{"messages": [{"role": "user", "content": text}]} for text in ("first", "second", "third")]
    decision = {"verdict": "redo", "reviewer": "ann"}
    events = events_of(
        ("submit", {"round": 0}),
        ("hold", {"round": 1, "response": chat("one")}),
        ("decide", {"decision": decision | {"reason": "Vague."}}),
        ("undo", {"round": 2}),
        ("decide", {"decision": decision}),
        ("redo", {"status": "bot", "body_before": requests[0]}),
        ("hold", {"round": 3, "response": chat("two")}),
        ("decide", {"decision": decision | {"reason": "Still vague."}}),
        ("redo", {"status": "bot", "body_before": requests[1]}),
        ("hold", {"round": 4, "response": chat("three")}),
        ("decide", {"decision": decision | {"verdict": "reject"}}),
        ("reject", {"status": "fail"}),
    )
    job = a_job("/v1/chat/completions", requests[2], None, status="fail", response=None, round=4)
    rounds = [feedback_of(a_receipt(job, "redo", number), job, events) for number in (1, 2, 3)]
    rounds.append(feedback_of(a_receipt(job, "reject", 4), job, events))
    assert rounds.pop(0) is None  # withdrawn
    rows = [row_of(feedback, "rejected") for feedback in rounds if feedback]
    assert [(row["input"]["messages"], row["reason"]) for row in rows if row] == [
        (requests[0]["messages"], None),
        (requests[1]["messages"], "Still vague."),
        (requests[2]["messages"], None),
    ]
    assert [row["non_preferred_output"][0]["content"] for row in rows if row] == ["one", "two", "three"]


@pytest.mark.parametrize(
    "request_body",
    [b"[]", b"null", b'{"messages":1}', b'{"messages":[]}', b'{"__binary__":1}'],
    ids=lambda body: body[:14],
)
def test_broken_requests_give_no_row(request_body: bytes) -> None:
    feedback = an_edit("/v1/chat/completions", msgspec.json.decode(request_body), chat("3"), chat("2"))
    row = row_of(feedback, "supervised")
    assert row is None or row["messages"] == [{"role": "assistant", "content": "2"}]
