"""Edits of a held answer from the form of the desk: its text, and its calls of tools."""

from collections.abc import Mapping

import msgspec

from signoff.core.binary import describe_binary
from signoff.core.dialects.answer import answer_text
from signoff.core.dialects.edited_answer import check_edit, shown_answer
from signoff.core.dialects.tool_call_edits import (
    CallsEdit,
    ToolCall,
    is_calls_edit,
    parse_calls_edit,
    tool_calls_of,
)
from signoff.core.job import Edit, Job
from signoff.core.reviews.item import text_of
from signoff.dashboard.call_fields import UNREADABLE
from signoff.dashboard.call_form import is_shown, read_calls
from signoff.errors import BadRequest

# Name of the field with the text of the answer; its fault has this name in `FormEdit.faults`.
ANSWER = "answer"


class FormEdit(msgspec.Struct, frozen=True, kw_only=True):
    """Edit that the form of the desk describes."""

    edit: Edit = Edit()
    """The edit; empty if nothing is changed."""
    faults: Mapping[str, str] = {}
    """Faults that keep it from being sent, by the name of the field."""


def is_savable(faults: Mapping[str, str]) -> bool:
    """Return True if an edit with these faults can be saved as a draft: all its fields could be parsed."""
    return not any(fault.startswith(UNREADABLE) for fault in faults.values())


def form_calls(job: Job) -> list[ToolCall]:
    """Return the calls of the model's answer that the desk shows as forms; none if a draft replaces the answer."""
    draft = None if job.draft is None else job.draft.response
    if draft is not None and not is_calls_edit(draft.encode()):
        return []
    calls = tool_calls_of(job.response, job.body)
    return calls if is_shown(calls) else []


def draft_of_calls(job: Job) -> CallsEdit | None:
    """Return the saved edit of calls; None without one, or if it is not valid."""
    if job.draft is None or job.draft.response is None:
        return None
    try:
        return parse_calls_edit(job.draft.response.encode())
    except (ValueError, RecursionError):
        return None


def original_text(job: Job) -> str:
    """Return the text of the model's answer as the field shows it: JSON if there is none, unless there are calls."""
    return (answer_text(job.response) or "") if form_calls(job) else text_of(job.response)


def editable_text(job: Job) -> str:
    """Return the text of the field: that of the draft, else that of the model's answer."""
    if not form_calls(job):
        return text_of(shown_answer(job))
    draft = draft_of_calls(job)
    return draft.text if draft is not None and isinstance(draft.text, str) else original_text(job)


def read_edit(job: Job, form: Mapping[str, str], *, for_draft: bool = False) -> FormEdit:
    """Return the edit that a form makes of the answer of `job`, or of its draft, with what is wrong with it.

    With `for_draft`, a form that equals the answer of the model gives an edit without changes, and not an empty edit,
    which would leave the saved draft as it is.
    """
    text = form.get(ANSWER, "").replace("\r\n", "\n")
    calls = form_calls(job)
    reading = read_calls(calls, draft_of_calls(job), form) if calls else None
    if reading is None:
        edit, faults = _edit_of_text(job, text), dict[str, str]()
    else:
        changes = CallsEdit(tool_calls=reading.edits)
        if text != original_text(job):
            changes = msgspec.structs.replace(changes, text=text)
        is_same = not reading.edits and changes.text is msgspec.UNSET
        has_draft = job.draft is not None and job.draft.response is not None
        edit = (
            Edit()
            if is_same and not (for_draft and has_draft)
            else Edit(response=msgspec.json.encode(changes).decode())
        )
        faults = dict(reading.faults)
    if not faults:
        try:
            check_edit(job, None if edit.response is None else edit.response.encode())
        except BadRequest as error:
            faults = {ANSWER: error.message}
    return FormEdit(edit=edit, faults=faults)


def _edit_of_text(job: Job, text: str) -> Edit:
    """Return the edit that makes `text` the text of the answer; if the desk shows that already, that of the draft.

    An answer that has no text is shown as JSON, and so is its edit.
    """
    shown = shown_answer(job)
    if text == text_of(shown):
        return Edit() if job.draft is None or job.draft.response is None else Edit(response=job.draft.response)
    is_json = shown is not None and describe_binary(shown) is None and answer_text(shown) is None and _is_json(text)
    return Edit(response=text if is_json else msgspec.json.encode(text).decode())


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True
