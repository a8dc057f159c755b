"""Answers as a reviewer has edited them: they keep the form and the envelope of the model's answer."""

from typing import Any

import msgspec

from signoff.core.api_paths import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EDITS,
    EMBEDDINGS,
    IN_WORDS,
    MESSAGES,
    MODERATIONS,
    RERANK,
    RESPONSES,
)
from signoff.core.cache import with_usage
from signoff.core.dialects.answer import text_or_json, with_text
from signoff.core.dialects.answer_forms import form_fault, is_meant_as_answer
from signoff.core.dialects.convert import convert_answer, has_form
from signoff.core.dialects.edit_faults import (
    check_calls_edit,
    check_format,
    check_new_calls,
    check_whole_format,
    format_of,
)
from signoff.core.dialects.tool_call_edits import (
    has_tools,
    is_calls_edit,
    parse_calls_edit,
    tool_calls_of,
    with_edited_calls,
)
from signoff.core.job import Job
from signoff.core.tokens import Usage, count_answer_tokens
from signoff.errors import BadRequest

# Endpoints whose answers can call tools.
_WITH_CALLS = frozenset({CHAT, MESSAGES, RESPONSES})
# Endpoints whose answers have an envelope around what they say: an id, a time, a model, and usage.
_WITH_ENVELOPE = frozenset({CHAT, COMPLETIONS, EDITS, MESSAGES, RESPONSES})
# Endpoints whose answers are numbers.
_IN_NUMBERS = frozenset({COUNT_TOKENS, EMBEDDINGS, MODERATIONS, RERANK})
# Doors whose payloads, and so their edited answers, may be any JSON.
_FREE_FORM_DOORS = frozenset({"jobs", "native"})
# Members of a transcription that are about single words.
_OF_WORDS = frozenset({"words", "segments", "logprobs"})


def edited_answer(job: Job, edit: bytes) -> bytes:
    """Return the answer that `edit`, which is JSON, makes of the answer of `job`.

    A whole answer of the job's path is taken as it is, with the members of the envelope that it leaves out, and an edit
    of calls changes calls of tools. A text becomes all that the answer says, and so does any other JSON where an answer
    is in words; the envelope of the model's answer stays, with its id, time, model and usage. An answer of a person has
    no envelope yet, and gets one. Where any JSON is an answer, JSON is taken as it is.
    """
    if (changed := _with_calls_edit(job, edit)) is not None:
        return with_usage(job.path, changed, _usage_of(job))
    if not edit.startswith(b'"') and job.door in _FREE_FORM_DOORS:
        return edit if job.response is not None else with_usage(job.path, edit, written_usage(job, edit))
    if not edit.startswith(b'"') and has_form(job.path, edit):
        usage = _usage_of(job) if job.response is not None else written_usage(job, edit)
        return with_usage(job.path, _with_envelope(job, edit), usage)
    text, original = text_or_json(edit), in_form(job, job.response)
    edited = in_form(job, _with_plain_text(original, text) or with_text(original, text))
    return with_usage(job.path, edited, _usage_of(job) if job.response is not None else written_usage(job, edited))


def _with_envelope(job: Job, edit: bytes) -> bytes:
    """Return a whole answer with the members that it leaves out, as the model's answer has them, or as a new one has.

    Those that tell how an answer ended are those of one that was ended by itself. An answer that lacks none keeps its
    bytes.
    """
    if job.path not in _WITH_ENVELOPE:
        return edit
    own = msgspec.json.decode(edit, type=dict[str, msgspec.Raw])
    envelope = msgspec.json.decode(in_form(job, job.response), type=dict[str, msgspec.Raw])
    # A copy of the text, which only some servers send.
    envelope.pop("output_text", None)
    if envelope.keys() <= own.keys():
        return edit
    ending = {name: value for name, value in _ending_of(job.path, own).items() if name in envelope}
    return msgspec.json.encode(envelope | ending | own)


def _ending_of(path: str, answer: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """Return the members that tell how an answer ended, if it ended by itself."""
    if path == RESPONSES:
        return {"status": "completed", "incomplete_details": None, "error": None}
    if path != MESSAGES:
        return {}
    blocks = msgspec.json.decode(answer["content"], type=list[dict[str, Any]])
    has_call = any(block.get("type") == "tool_use" for block in blocks)
    return {"stop_reason": "tool_use" if has_call else "end_turn", "stop_sequence": None}


def shown_answer(job: Job) -> bytes | None:
    """Return the answer that an approval sends: with the saved draft, else that of the model."""
    if job.draft is None or job.draft.response is None:
        return job.response
    return edited_answer(job, job.draft.response.encode())


def _with_calls_edit(job: Job, edit: bytes) -> bytes | None:
    """Return the answer with an edit of calls; None for another edit, or if the answer has no calls."""
    if job.response is None or not is_calls_edit(edit) or not tool_calls_of(job.response, job.body):
        return None
    try:
        return with_edited_calls(job.response, parse_calls_edit(edit))
    except (ValueError, RecursionError):  # `check_edit` refuses it; a draft may have it nevertheless
        return None


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
    """Return `body` as an answer to `job`: one of another form becomes the text of an answer of its path."""
    is_written_here = job.response is None and not job.model.endswith("*")
    # A person is named as `job.model`, also as a fallback; for a model, callers see the name that they asked for.
    model = job.model if is_written_here else job.target
    seed = job.id if is_written_here else ""
    return convert_answer(job.path, body or b"null", model, created=job.created_at // 1_000_000, seed=seed)


def written_usage(job: Job, answer: bytes) -> Usage:
    """Return an estimate of the tokens of an answer that a person wrote, and of its request."""
    prompt = job.usage.prompt_tokens if job.usage is not None else job.prompt_tokens
    completion = count_answer_tokens(answer)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _usage_of(job: Job) -> Usage | None:
    """Return the tokens of the answer, else those of all attempts at it; None if neither is known."""
    prompt, completion = job.prompt_tokens, job.completion_tokens
    if job.usage is not None or not (prompt or completion):
        return job.usage
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def check_edit(job: Job, edit: bytes | None) -> None:
    """Check that an approval of `job` with `edit`, or without one, sends an answer that its caller can use.

    All approvals pass through it. An edited answer has the form of the job's path; a caller who asked for JSON gets
    JSON that fits the schema; and calls of tools have arguments that fit the schemas of the tools. Raises BadRequest.
    """
    if edit is None:
        if job.response is None:
            raise BadRequest("The item has no answer yet, as a person answers it; write the answer in `response`.")
        return
    if is_calls_edit(edit) and (job.path in _WITH_CALLS or tool_calls_of(job.response, job.body)):
        if _check_calls(job, edit):
            return
    elif is_meant_as_answer(job.path, edit):
        _check_whole(job, edit)
        return
    if job.path in _IN_NUMBERS:
        raise BadRequest(f"An answer of {job.path} has no text; send the whole edited answer, a JSON object.")
    if job.path in IN_WORDS and (wanted := format_of(job.body)) is not None:
        check_format(wanted, text_or_json(edit))


def _check_calls(job: Job, edit: bytes) -> bool:
    """Check an edit of calls; return False if it is any JSON, which is an answer at this door."""
    calls = tool_calls_of(job.response, job.body)
    if not calls:
        if job.door in _FREE_FORM_DOORS:
            return False
        raise BadRequest("The answer calls no tool, so `tool_calls` changes nothing; send a text, or the whole answer.")
    try:
        changes = parse_calls_edit(edit)
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f'The edit of calls is not valid: {error}. Send {{"tool_calls": [{{"id", "arguments" or "refuse"}}]}}.'
        ) from None
    check_calls_edit(calls, changes, job.response)
    if (wanted := format_of(job.body)) is not None and isinstance(changes.text, str) and changes.text:
        check_format(wanted, changes.text)
    return True


def _check_whole(job: Job, answer: bytes) -> None:
    if (fault := form_fault(job.path, answer)) is not None:
        raise BadRequest(f"The edited answer is no answer of {job.path}: {fault}. Correct it, or send a text.")
    calls, original = tool_calls_of(answer, job.body), tool_calls_of(job.response, job.body)
    check_new_calls(calls, original, has_tools=has_tools(job.body))
    if job.path in IN_WORDS and (wanted := format_of(job.body)) is not None:
        check_whole_format(wanted, answer)
