"""Texts of requests and answers, as the pages show them."""

from typing import Any

import msgspec

from signoff.core.dialects.tool_call_edits import tool_names
from signoff.core.dialects.transcript import TranscriptEntry
from signoff.core.job import Job
from signoff.core.reviews.item import text_of

# Maximum number of characters of a request or an answer on a page, which links to the rest.
MAX_SHOWN = 100_000
MAX_SETTING = 40
# Members of a request that are shown as the conversation.
CONVERSATION_MEMBERS = frozenset({"model", "messages", "input", "instructions", "system", "prompt", "instruction"})


def settings_text(body: bytes) -> str:
    """Return one line with the names of a request's tools, and its members besides the conversation."""
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):
        return "other members"
    names = ", ".join(tool_names(body))
    parts = [f"tools: {names}"] if names else []
    for name, value in members.items():
        if isinstance(value, bool | int | float | str) and name not in CONVERSATION_MEMBERS:
            parts.append(f"{name} {msgspec.json.encode(value).decode()[:MAX_SETTING]}")
        elif name not in CONVERSATION_MEMBERS | {"tools", "functions"}:
            parts.append(name)
    return " · ".join(parts) or "other members"


def answer_of_job(job: Job) -> str:
    """Return the text of the answer, also of one that is a JSON string alone; empty if there is none."""
    try:
        return msgspec.json.decode(job.response or b"null", type=str)
    except (ValueError, RecursionError):
        return text_of(job.response)


def cut(entries: list[TranscriptEntry]) -> list[TranscriptEntry]:
    """Return the entries up to MAX_SHOWN characters."""
    shown, left = list[TranscriptEntry](), MAX_SHOWN
    for entry in entries:
        if left <= 0:
            break
        shown.append(entry._replace(text=entry.text[:left]))
        left -= len(entry.text)
    return shown
