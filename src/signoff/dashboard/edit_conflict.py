"""The change that somebody else saved while a form was open: who made it, and how the text of the form differs."""

import msgspec

from signoff.core.access import Caller
from signoff.core.audit import AuditFilter
from signoff.dashboard.difference import line_difference
from signoff.doors.http import INTS, parse_digits
from signoff.errors import SignoffError, VersionConflict
from signoff.work.admin.audit import list_audit
from signoff.work.services import Services

MAX_LOOKED_AT = 10
NO_VERSION = -1


class EditConflict(msgspec.Struct, frozen=True):
    """Present state of what somebody else saved while a form was open, beside the text of the form."""

    title: str
    """Name of the present state, such as `version 7`."""
    text: str
    """Present text."""
    difference: list[tuple[str, str]]
    """Lines that lead from the present text to that of the form; see `line_difference`."""
    error: VersionConflict
    """Error that the page shows."""


def expected_version(field: str) -> int:
    """Return the version in the hidden field `expected`; NO_VERSION, which no object has, if it has none."""
    number = parse_digits(field)
    return NO_VERSION if number is None or number >= INTS else number


async def edit_conflict(
    services: Services, caller: Caller, subject: str, version: int | None, texts: tuple[str, str]
) -> EditConflict:
    """Return the change of `subject`.

    Args:
        services: The dependencies.
        caller: The caller; an admin gets the name of who made the change.
        subject: The subject in the audit log, such as `policy:strict`.
        version: The version that was saved; None for an object without versions, 0 for one that was deleted.
        texts: The present text, and that of the form.
    """
    noun = subject.partition(":")[0]
    what = {None: f"The {noun} was changed", 0: f"The {noun} was deleted"}.get(version, f"Version {version} was saved")
    actor = await _latest_actor(services, caller, subject)
    by = f" by {actor}" if actor else ""
    error = VersionConflict(
        f"{what} meanwhile{by}. Nothing of yours is saved yet; your text is still in the form. "
        "Compare it with the present text, and save again to replace that."
    )
    title = f"version {version}" if version else f"the {noun} as it is now" if version is None else "the last version"
    return EditConflict(title, texts[0], line_difference(*texts), error)


async def _latest_actor(services: Services, caller: Caller, subject: str) -> str | None:
    """Return who changed the text of `subject` last; None if the caller may not read the audit log."""
    try:
        entries = await list_audit(services, caller, AuditFilter(subject=subject, limit=MAX_LOOKED_AT))
    except SignoffError as error:
        if error.status != 403:
            raise
        return None
    noun = subject.partition(":")[0]
    actions = {f"{noun}_{verb}" for verb in ("created", "changed", "removed")}
    actor = next((entry.actor for entry in entries if entry.action in actions), None)
    return "the operator" if actor == "operator" else actor and actor.removeprefix("user:")
