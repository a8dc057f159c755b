"""The JSON form of a held answer on the desk: all that a reviewer signs off, and not what could sway the verdict.

The rule that matched, audits and planted items are left out; see `core.wire` for jobs.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from signoff.core.binary import describe_binary
from signoff.core.dialects.answer import answer_text
from signoff.core.dialects.edited_answer import shown_answer
from signoff.core.dialects.tool_call_edits import tool_calls_of
from signoff.core.dialects.transcript import answer_details, transcript
from signoff.core.job import Edit, Job, Vote
from signoff.core.pipelines.render import request_text
from signoff.core.price import NANO, dollars
from signoff.core.reviews.votes import as_seen_by, votes_needed
from signoff.core.wire import format_time, usage_as_json
from signoff.errors import BadRequest


def summary_as_json(job: Job, now: int) -> dict[str, Any]:
    """Return what a list says of a held answer; `now` is in microseconds since 1970."""
    is_open = job.review_lease is not None and (job.review_lease_until or 0) >= now
    return {
        "job_id": job.id,
        "round": job.round,
        "queue": job.review_queue,
        "priority": job.priority if job.review_priority is None else job.review_priority,
        "deadline": _time(job.review_deadline),
        "held_at": _time(job.held_at),
        "created_at": format_time(job.created_at),
        "model": job.target,
        "answered_by": job.model,
        "path": job.path,
        "assignee": job.assignee,
        "opened_by": job.review_lease if is_open else None,
        "opened_until": _time(job.review_lease_until) if is_open else None,
        "votes_needed": votes_needed(job),
        "signals": {} if job.ruling is None else job.ruling.signals,
    }


def item_as_json(
    job: Job, now: int, *, reviewer: str, asker: str | None, votes_cast: int, votes: Sequence[Vote]
) -> dict[str, Any]:
    """Return the whole held answer as `reviewer` sees it; while several reviewers vote, each sees only their own draft.

    Args:
        job: The job with the held answer.
        now: Time in microseconds since 1970.
        reviewer: Email of the reviewer.
        asker: Email of the user who sent the request; None if it is not known.
        votes_cast: Number of votes in this round.
        votes: The votes, if `reviewer` decides between them; else empty.
    """
    job = as_seen_by(job, reviewer)
    draft, shown = job.draft or Edit(), shown_answer(job)
    return summary_as_json(job, now) | {
        "user": asker,
        "door": job.door,
        "prompt": job.prompt,
        "prompt_version": job.prompt_version,
        "run": job.parent_id,
        "transcript": _entries(job.body),
        "new_transcript": None if draft.payload is None else _entries(draft.payload.encode()),
        "payload": msgspec.Raw(job.body),
        "response": None if job.response is None else msgspec.Raw(job.response),
        "answer": text_of(job.response),
        "draft": None if draft == Edit() else {"payload": _raw(draft.payload), "response": _raw(draft.response)},
        "draft_answer": None if draft.response is None else text_of(shown),
        "details": answer_details(shown),
        "tool_calls": tool_calls_of(job.response, job.body),
        "usage": usage_as_json(job),
        "cost": None if job.cost_nanodollars is None else dollars(job.cost_nanodollars, NANO),
        "decision": decision_as_json(job),
        "votes_cast": votes_cast,
        "votes": [vote_as_json(vote) for vote in votes],
    }


def decision_as_json(job: Job) -> dict[str, Any] | None:
    """Return the verdict that waits for its effect; None if there is none."""
    decision = job.decision
    if decision is None or job.release_at is None:
        return None
    release = {"release_at": format_time(job.release_at)}
    return {"verdict": decision.verdict, "reviewer": decision.reviewer, "reason": decision.reason} | release


def vote_as_json(vote: Vote) -> dict[str, Any]:
    """Return a vote, for the reviewer who decides between several."""
    decision = vote.decision
    edit = {"payload": _raw(decision.edit.payload), "response": _raw(decision.edit.response)}
    members = {"reviewer": decision.reviewer, "verdict": decision.verdict, "reason": decision.reason}
    return members | edit | {"at": format_time(vote.at)}


def text_of(answer: bytes | None) -> str:
    """Return the text of an answer, with the line ends that a form sends back; the JSON of one that has none."""
    if answer is None:
        return ""
    text = describe_binary(answer) or answer_text(answer)
    return (answer.decode(errors="replace") if text is None else text).replace("\r\n", "\n")


def question_of(job: Job) -> str:
    """Return the text of the last message of a user in the request, else the request itself."""
    if (binary := describe_binary(job.body)) is not None:
        return binary
    try:
        body = msgspec.json.decode(job.body, type=_Texts)
        return request_text(next(value for value in (body.messages, body.input, body.prompt) if value is not None))
    except (ValueError, RecursionError, StopIteration, BadRequest):
        return job.body.decode(errors="replace")


class _Texts(msgspec.Struct):
    messages: Any = None
    input: Any = None
    prompt: Any = None


def _entries(body: bytes) -> list[dict[str, Any]]:
    return [entry._asdict() for entry in transcript(body)]


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text.encode())


def _time(microseconds: int | None) -> str | None:
    return None if microseconds is None else format_time(microseconds)
