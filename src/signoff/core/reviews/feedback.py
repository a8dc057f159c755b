"""Feedback: the decisions of reviewers as data for fine-tuning and for evaluations.

Supervised rows and preference pairs have the formats of OpenAI's fine-tuning API ("Supervised fine-tuning" and "Direct
preference optimization"): all dialects are translated to chats.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from signoff.core import api_paths
from signoff.core.decode import JsonObject
from signoff.core.dialects import messages_to_chat, responses_to_chat
from signoff.core.dialects.edited_answer import in_form
from signoff.core.job import Decision, Event, Job
from signoff.core.reviews.copies import is_planted
from signoff.core.reviews.receipt import SIGNED, VerdictReceipt
from signoff.core.wire import format_time
from signoff.errors import BadRequest

FeedbackKind = Literal["decisions", "supervised", "preference", "rejected"]
FEEDBACK_KINDS: tuple[FeedbackKind, ...] = get_args(FeedbackKind)
# Members of an answer's message that OpenAI's formats have.
_MESSAGE = ("role", "content", "tool_calls")
_UNREADABLE = (BadRequest, msgspec.MsgspecError, ValueError, RecursionError)


class FeedbackQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions to export; the conditions are joined by AND."""

    kind: FeedbackKind = "decisions"
    """Form of the rows."""
    after_seq: int = 0
    """Cursor: number of the last receipt of the previous export."""
    since: int | None = None
    """Earliest time, in microseconds since 1970, UTC; None for no bound."""
    until: int | None = None
    """Time before which the decisions took effect, in microseconds since 1970, UTC; None for no bound."""
    target: str | None = None
    """Name of the requested model or pipeline; None for all."""
    prompt: str | None = None
    """Name of the prompt; None for all requests, with a prompt or without."""
    prompt_version: int | None = None
    """Version of that prompt; None for all."""
    policy: str | None = None
    """Name of the policy; None for all."""


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """A decision with the contents that it was about."""

    receipt: VerdictReceipt
    """Receipt of the decision."""
    job: Job
    """The job as it is now."""
    request: bytes
    """Request that the model had in that round."""
    answer: bytes | None
    """Answer of the model in that round."""
    final: bytes | None
    """Answer that was released; None if none was."""
    reason: str | None
    """Reason of the reviewer."""


def feedback_of(receipt: VerdictReceipt, job: Job, events: Sequence[Event]) -> Feedback | None:
    """Return a decision with its contents, from the events of its job.

    Return None if the events lack the decision, and for a planted item.
    """
    if is_planted(job):  # no caller sent the request, and no model gave the answer
        return None
    number, answer, effect, reason = 0, None, None, None
    for index, event in enumerate(events):
        number = event.data.get("round", number)
        if event.verb in {"hold", "present"}:
            answer = event.data.get("response")
        if number == receipt.round and event.verb == "decide":
            reason = msgspec.convert(event.data["decision"], Decision).reason
        if number == receipt.round and event.verb in SIGNED and event.data["status"] != "human":
            effect = index
            break
    if effect is None:
        return None
    # The event of a later `redo` with an edit has the request before it.
    before = [event.data["body_before"] for event in events[effect:] if "body_before" in event.data]
    return Feedback(
        receipt=receipt,
        job=job,
        request=msgspec.json.encode(before[0]) if before else job.body,
        answer=None if answer is None else msgspec.json.encode(answer),
        final=job.response if receipt.verdict == "approve" else None,
        reason=reason,
    )


def row_of(feedback: Feedback, kind: FeedbackKind) -> JsonObject | None:
    """Return the row of a decision; None if it has none of this kind, for example because the answer is not a chat."""
    match kind:
        case "decisions":
            return _decision(feedback)
        case "supervised":
            return _supervised(feedback)
        case "preference":
            return _preference(feedback)
        case "rejected":
            return _rejected(feedback)


def _decision(feedback: Feedback) -> JsonObject:
    receipt, job = feedback.receipt, feedback.job
    return {
        "seq": receipt.seq,
        "at": format_time(receipt.at),
        "job_id": job.id,
        "round": receipt.round,
        "verdict": receipt.verdict,
        "edited": feedback.final is not None and receipt.released != receipt.shown.answer,
        "reviewer": receipt.reviewer,
        "reason": feedback.reason,
        "target": receipt.target,
        "model": receipt.model,
        "prompt": job.prompt,
        "prompt_version": job.prompt_version,
        "policy": receipt.policy,
        "policy_version": receipt.policy_version,
        "path": job.path,
        "request": msgspec.Raw(feedback.request),
        "answer": None if feedback.answer is None else msgspec.Raw(feedback.answer),
        "final": None if feedback.final is None else msgspec.Raw(feedback.final),
    }


def _supervised(feedback: Feedback) -> JsonObject | None:
    if feedback.final is None:
        return None
    chat = _chat(feedback, feedback.final)
    return None if chat is None else {"messages": [*chat["messages"], chat["answer"]], **_tools(chat)}


def _preference(feedback: Feedback) -> JsonObject | None:
    if feedback.final is None or feedback.answer is None:
        return None
    preferred, other = _chat(feedback, feedback.final), _chat(feedback, feedback.answer)
    if preferred is None or other is None or preferred["answer"] == other["answer"]:
        return None
    return {
        "input": {"messages": preferred["messages"], **_tools(preferred)},
        "preferred_output": [preferred["answer"]],
        "non_preferred_output": [other["answer"]],
    }


def _rejected(feedback: Feedback) -> JsonObject | None:
    if feedback.final is not None or feedback.answer is None:
        return None
    chat = _chat(feedback, feedback.answer)
    if chat is None:
        return None
    return {
        "input": {"messages": chat["messages"], **_tools(chat)},
        "non_preferred_output": [chat["answer"]],
        "verdict": feedback.receipt.verdict,
        "reason": feedback.reason,
    }


def _tools(chat: JsonObject) -> JsonObject:
    return {name: chat[name] for name in ("tools", "parallel_tool_calls") if chat.get(name) is not None}


def _chat(feedback: Feedback, answer: bytes) -> JsonObject | None:
    """Return request and answer as a chat, whose answer is the member `answer`; None if they are no chat."""
    try:
        request = msgspec.json.decode(feedback.request, type=JsonObject)
        content = msgspec.json.decode(in_form(feedback.job, answer), type=JsonObject)
        messages, chat = _translated(feedback.job, request, content)
    except (*_UNREADABLE, KeyError, IndexError, TypeError, AttributeError):
        return None
    if not messages or messages[-1].get("role") != "assistant":
        return None
    last = {name: messages[-1][name] for name in _MESSAGE if messages[-1].get(name) is not None}
    return chat | {"messages": messages[:-1], "answer": last}


def _translated(job: Job, request: JsonObject, answer: JsonObject) -> tuple[list[JsonObject], JsonObject]:
    """Return the messages of a chat, with the answer as the last one, and the chat's other members.

    The answer of another dialect goes into its request as the last turn, which is translated like the others.
    """
    match job.path:
        case api_paths.CHAT:
            chat, last = request, answer["choices"][0]["message"]
            return [*chat["messages"], {"role": "assistant"} | last], chat
        case api_paths.COMPLETIONS:
            texts = [{"role": "user", "content": request["prompt"]}]
            return [*texts, {"role": "assistant", "content": answer["choices"][0]["text"]}], {}
        case api_paths.MESSAGES:
            turn = {"role": "assistant", "content": answer["content"]}
            whole = request | {"messages": [*request["messages"], turn], "stream": False}
            chat = msgspec.json.decode(messages_to_chat.to_chat(msgspec.json.encode(whole), job.target))
        case api_paths.RESPONSES:
            conversation = request["input"]
            turns = [{"role": "user", "content": conversation}] if isinstance(conversation, str) else conversation
            whole = request | {"input": [*turns, *answer["output"]], "stream": False}
            chat = msgspec.json.decode(responses_to_chat.to_chat(msgspec.json.encode(whole), job.target))
        case _:
            return [], {}
    return chat["messages"], chat
