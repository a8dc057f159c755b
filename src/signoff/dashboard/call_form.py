"""Tool calls of an answer as a form, and the form as an edit of the calls, which the reviews API takes too."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from signoff.core.decode import JsonObject, as_object
from signoff.core.dialects.tool_call_edits import CallEdit, CallsEdit, ToolCall
from signoff.core.json_schema import schema_faults
from signoff.dashboard.call_fields import Argument, arguments_of, as_json, field_text, field_value

MAX_CALLS = 50
MAX_FAULTS = 50


class CallField(msgspec.Struct, frozen=True, kw_only=True):
    """Field of a form, with its text."""

    name: str
    """Name of the field in the form."""
    argument: Argument
    """The argument that it shows."""
    text: str
    """Text of the field."""
    original: str
    """Text of the model's value."""
    is_new: bool
    """True if the model gave no value."""
    fault: str
    """Fault of the text; empty if there is none."""

    @property
    def is_changed(self) -> bool:
        """True if the text is not that of the model's value."""
        return self.text != self.original


class CallForm(msgspec.Struct, frozen=True, kw_only=True):
    """Tool call as a form."""

    name: str
    """Beginning of the names of its fields."""
    call: ToolCall
    """The call as the model made it."""
    fields: list[CallField]
    """A field for each argument; none if the arguments are no object."""
    whole: CallField | None
    """The field of arguments that are no object."""
    is_refused: bool
    """True if the call is refused."""
    refusal: str
    """Message to the agent about the refusal."""
    fault: str
    """Fault of the call; empty if there is none."""

    @property
    def is_changed(self) -> bool:
        """True if the call is refused, or has other arguments."""
        return self.is_refused or any(field.is_changed for field in ([self.whole] if self.whole else self.fields))


class CallsFormEdit(msgspec.Struct, frozen=True, kw_only=True):
    """Edit of calls that a form describes."""

    edits: list[CallEdit]
    """An edit for each call that is changed."""
    faults: Mapping[str, str]
    """Faults by the name of the field or of the call."""


_WHOLE = Argument(name="arguments", kind="area", type_text="text", description="", is_required=True, is_nullable=False)


def is_shown(calls: Sequence[ToolCall]) -> bool:
    """Return True if the page shows the calls as forms."""
    return 0 < len(calls) <= MAX_CALLS


def call_forms(
    calls: Sequence[ToolCall], draft: CallsEdit | None, form: Mapping[str, str], faults: Mapping[str, str]
) -> list[CallForm]:
    """Return the forms of the calls, filled from `form`, else from the draft, else as the model made them."""
    edits = {} if draft is None else {edit.id: edit for edit in draft.tool_calls}
    return [_call_form(f"call.{number}", call, edits.get(call.id), form, faults) for number, call in enumerate(calls)]


def _call_form(
    name: str, call: ToolCall, edit: CallEdit | None, form: Mapping[str, str], faults: Mapping[str, str]
) -> CallForm:
    is_sent = f"{name}.do" in form
    refusal = form.get(f"{name}.why", "") if is_sent else "" if edit is None else edit.refuse
    is_refused = form[f"{name}.do"] == "refuse" if is_sent else bool(refusal)
    original = _object(call.arguments) if call.kind == "function" else None
    fields, whole = list[CallField](), None
    if original is None:
        text = call.arguments if edit is None or edit.arguments is msgspec.UNSET else _text(edit.arguments)
        whole = _field(f"{name}.whole", _WHOLE, {"arguments": text}, {"arguments": call.arguments}, form, faults)
    else:
        values = original if edit is None else _edited(edit, original)
        for number, argument in enumerate(arguments_of(as_object(call.schema), original, values)):
            fields.append(_field(f"{name}.{number}", argument, values, original, form if is_sent else {}, faults))
    return CallForm(
        name=name,
        call=call,
        fields=fields,
        whole=whole,
        is_refused=is_refused,
        refusal=refusal if isinstance(refusal, str) else "",
        fault=faults.get(name, ""),
    )


def _field(
    name: str,
    argument: Argument,
    values: JsonObject,
    original: JsonObject,
    form: Mapping[str, str],
    faults: Mapping[str, str],
) -> CallField:
    text = field_text(argument, values)
    if form:
        text = ("true" if name in form else "false") if argument.kind == "checkbox" else form.get(name, text)
    return CallField(
        name=name,
        argument=argument,
        text=text.replace("\r\n", "\n"),
        original=field_text(argument, original).replace("\r\n", "\n"),
        is_new=argument.name not in original,
        fault=faults.get(name, ""),
    )


def _object(text: str) -> JsonObject | None:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None


def _text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else as_json(arguments)


def _edited(edit: CallEdit, original: JsonObject) -> JsonObject:
    """Return the arguments of an edit; those of the model if it has none, or none that are an object."""
    if edit.arguments is msgspec.UNSET:
        return original
    edited = _object(_text(edit.arguments))
    return original if edited is None else edited


def read_calls(calls: Sequence[ToolCall], draft: CallsEdit | None, form: Mapping[str, str]) -> CallsFormEdit | None:
    """Return the changes that a form makes to the calls; None if it has no fields of calls."""
    if "call.0.do" not in form:
        return None
    edits, faults = list[CallEdit](), dict[str, str]()
    for each in call_forms(calls, draft, form, {}):
        edit = _read_call(each, faults)
        if edit is not None:
            edits.append(edit)
    return CallsFormEdit(edits=edits, faults=faults)


def _read_call(each: CallForm, faults: dict[str, str]) -> CallEdit | None:
    call = each.call
    if each.is_refused:
        if not each.refusal.strip():
            faults[f"{each.name}.why"] = "Say why the call is refused: the agent reads it."
        return CallEdit(id=call.id, refuse=each.refusal)
    if each.whole is not None:
        return CallEdit(id=call.id, arguments=each.whole.text) if each.is_changed else None
    original = _object(call.arguments) or {}
    values: JsonObject = {}
    for field in each.fields:
        try:
            value = field_value(field.argument, field.text, original)
        except ValueError as error:
            faults[field.name] = str(error)
            value = field.text
        if value is not msgspec.UNSET:
            values[field.argument.name] = value
        elif field.argument.is_required:
            faults[field.name] = "The tool needs a value here."
    if {name: as_json(value) for name, value in values.items()} == {
        name: as_json(value) for name, value in original.items()
    }:
        return None
    values = {name: values[name] for name in (*original, *values) if name in values}
    faults |= {name: text for name, text in _schema_faults(each, values).items() if name not in faults}
    return CallEdit(id=call.id, arguments=values)


def _schema_faults(each: CallForm, values: JsonObject) -> dict[str, str]:
    """Return what does not fit the schema of the tool, by the field, or by the call if it is about no field."""
    missing = {f.argument.name for f in each.fields if f.argument.is_required and f.argument.name not in values}
    faults = dict[str, str]()
    for fault in schema_faults(each.call.schema, values, limit=MAX_FAULTS):
        field = next((f for f in each.fields if _is_within(fault.path, f.argument.name)), None)
        if field is None and missing and not fault.path and "required" in fault.message:
            continue  # the field has this fault already
        place = fault.path if field is None else fault.path.removeprefix(f".{field.argument.name}")
        faults.setdefault(each.name if field is None else field.name, f"{place} {fault.message}.".strip())
    return faults


def _is_within(path: str, name: str) -> bool:
    return path == f".{name}" or path.startswith((f".{name}.", f".{name}["))
