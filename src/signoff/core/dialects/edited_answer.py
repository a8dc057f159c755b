"""Answers as a reviewer has edited them: they keep the form and the envelope of the model's answer."""

from typing import Any

import msgspec

from signoff.core.cache import with_usage
from signoff.core.dialects.answer import text_or_json, with_text
from signoff.core.dialects.convert import convert_answer, has_form
from signoff.core.endpoints import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EDITS,
    EMBEDDINGS,
    MESSAGES,
    MODERATIONS,
    RERANK,
    RESPONSES,
)
from signoff.core.job import Job
from signoff.core.tokens import Usage
from signoff.errors import BadRequest

# Endpoints whose answers say something in words, and those whose answers are numbers.
_IN_WORDS = frozenset({CHAT, COMPLETIONS, EDITS, MESSAGES, RESPONSES})
_IN_NUMBERS = frozenset({COUNT_TOKENS, EMBEDDINGS, MODERATIONS, RERANK})
# Doors whose payloads, and so their edited answers, may be any JSON.
_FREE_FORM_DOORS = frozenset({"jobs", "native"})
# Members of a transcription that are about single words.
_OF_WORDS = frozenset({"words", "segments", "logprobs"})
_JSON_FORMATS = frozenset({"json_object", "json_schema"})


def edited_answer(job: Job, edit: bytes) -> bytes:
    """Return the answer that `edit`, which is JSON, makes of the answer of `job`.

    A whole answer of the endpoint is taken as it is. A text becomes all that the answer says, and so does any other
    JSON where an answer is in words; the envelope of the model's answer stays, with its id, time, model and usage.
    """
    if not edit.startswith(b'"') and (has_form(job.path, edit) or job.door in _FREE_FORM_DOORS):
        return edit
    text, original = text_or_json(edit), in_form(job, job.response)
    edited = in_form(job, _with_plain_text(original, text) or with_text(original, text))
    return with_usage(job.path, edited, _usage_of(job))


def _with_plain_text(answer: bytes, text: str) -> bytes | None:
    """Return a transcription or its like with `text` instead of its own; None for an answer of another form."""
    try:
        members = msgspec.json.decode(answer, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None
    if not isinstance(members.get("text"), str):
        return None
    return msgspec.json.encode({name: members[name] for name in members if name not in _OF_WORDS} | {"text": text})


def in_form(job: Job, body: bytes | None) -> bytes:
    """Return `body` as an answer to `job`: one of another form becomes the text of an answer of its endpoint."""
    return convert_answer(job.path, body or b"null", job.target, created=job.created_at // 1_000_000)


def _usage_of(job: Job) -> Usage | None:
    """Return the tokens of the answer, else those of all attempts at it; None if neither is known."""
    prompt, completion = job.prompt_tokens, job.completion_tokens
    if job.usage is not None or not (prompt or completion):
        return job.usage
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def check_edit(job: Job, edit: bytes) -> None:
    """Check that the caller of `job` can read the edited answer. Raises BadRequest.

    A caller who asked for JSON gets JSON, unless the edit is a whole answer of the endpoint.
    """
    if job.path in _IN_NUMBERS:
        if not edit.startswith(b"{"):
            raise BadRequest(f"An answer of {job.path} has no text; send the whole edited answer, a JSON object.")
    elif job.path in _IN_WORDS and not has_form(job.path, edit) and _wants_json(job.body):
        text = text_or_json(edit)
        try:
            msgspec.json.decode(text)
        except (ValueError, RecursionError) as error:
            raise BadRequest(
                f"The request asks for an answer in JSON, and the edited text is not JSON: {error}. Send JSON, or to "
                "send this text nevertheless, the whole answer as a JSON object of the endpoint's form."
            ) from None


class _Format(msgspec.Struct):
    type: str = ""


class _TextOptions(msgspec.Struct):
    format: _Format | None = None


class _FormatRequest(msgspec.Struct):
    response_format: _Format | None = None
    text: _TextOptions | None = None


def _wants_json(body: bytes) -> bool:
    """Return True if the request asks for JSON: by `response_format`, or in a response by `text.format`."""
    try:
        request = msgspec.json.decode(body, type=_FormatRequest)
    except (ValueError, RecursionError):
        return False
    formats = (request.response_format, request.text and request.text.format)
    return any(each is not None and each.type in _JSON_FORMATS for each in formats)
