"""Held answer on the desk, with everything that a reviewer signs off."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from signoff.core.access import Caller
from signoff.core.dialects.edited_answer import shown_answer
from signoff.core.dialects.transcript import TranscriptEntry, answer_details, transcript
from signoff.core.fingerprint import fingerprint
from signoff.core.job import Edit, Job, Vote
from signoff.core.reviews.votes import votes_needed
from signoff.dashboard.call_form import CallForm, call_forms
from signoff.dashboard.content import MAX_SHOWN, cut, settings_text
from signoff.dashboard.desk_edits import ANSWER, draft_of_calls, editable_text, form_calls, is_savable, original_text
from signoff.dashboard.difference import Change, difference
from signoff.dashboard.media import RequestFile, media_of
from signoff.work.jobs.query import departed_callers
from signoff.work.reviews.history import asker_of, open_votes
from signoff.work.services import Services


class HeldCard(msgspec.Struct, frozen=True, kw_only=True):
    """Held job, with all that a reviewer signs off."""

    job: Job
    """The job."""
    asker: str | None
    """Email of the user who asked."""
    answer: str
    """Text of the answer, or of the saved draft of it."""
    original: str
    """Text of the model's answer."""
    changes: list[Change]
    """Difference between the two."""
    input: list[TranscriptEntry]
    """Everything that the request says, in order."""
    settings: str
    """Short text for the rest of the request: the names of its tools, and other members."""
    new_input: list[TranscriptEntry]
    """Everything that the request of the saved draft says, which the model is asked again; empty without one."""
    details: str | None
    """JSON of the whole answer if it says more than its text, such as calls of tools."""
    has_draft: bool
    """True if `answer` is a saved draft."""
    is_unwritten: bool
    """True if a person is yet to write the answer."""
    is_cut: bool
    """True if the texts are too long to be shown whole."""
    caller_left_at: int | None
    """Time at which the caller left, in microseconds since 1970, UTC; None if the caller has not left."""
    seen: str
    """Digest of the answer and the draft that are shown, which the form sends back."""
    opened_by: str | None
    """Email of the reviewer who has it open; None for nobody."""
    signals: dict[str, Any]
    """Values that the policy has looked at."""
    votes: int
    """Number of reviewers who must agree."""
    votes_cast: int
    """Number of those who have voted."""
    ballot: list[Vote]
    """All votes, once they are in and do not agree."""
    calls: list[CallForm]
    """Calls of tools, as forms."""
    media: list[RequestFile]
    """Images, sounds and files of the request."""
    is_savable: bool
    """True if the edits can be saved as a draft, even if they cannot be approved."""
    faults: Mapping[str, str]
    """Faults of the edits, by the name of the field."""
    fault: str
    """Fault of the text of the answer; empty if there is none."""

    @property
    def is_changed(self) -> bool:
        """True if an approval sends another answer than that of the model."""
        return bool(self.changes) or any(call.is_changed for call in self.calls)


async def held_card(
    services: Services,
    caller: Caller,
    job: Job,
    form: Mapping[str, str] | None = None,
    faults: Mapping[str, str] | None = None,
) -> HeldCard:
    """Return what the desk shows of `job`: with the edits of `form` and their faults, else with its draft."""
    form, faults = form or {}, faults or {}
    shown, draft = shown_answer(job), job.draft or Edit()
    whole_input = transcript(job.body)
    new_input: Sequence[TranscriptEntry] = [] if draft.payload is None else transcript(draft.payload.encode())
    details, original = answer_details(shown), original_text(job)
    answer = form.get("answer", editable_text(job)).replace("\r\n", "\n")
    length = sum(len(entry.text) for entry in [*whole_input, *new_input]) + len(details or "")
    votes_cast, ballot = await open_votes(services, job)
    return HeldCard(
        job=job,
        asker=await asker_of(services, caller, job),
        answer=answer,
        original=original,
        changes=await asyncio.to_thread(difference, original, answer) if answer != original else [],
        calls=call_forms(form_calls(job), draft_of_calls(job), form, faults),
        input=cut(whole_input),
        settings=settings_text(job.body),
        new_input=cut(list(new_input)),
        media=media_of(job.body),
        details=details and details[:MAX_SHOWN],
        has_draft=draft.response is not None,
        is_unwritten=job.response is None,
        is_cut=length > MAX_SHOWN,
        caller_left_at=(await departed_callers(services, [job])).get(job.id),
        seen=digest_of(job),
        opened_by=opener_of(services, job),
        signals={} if job.ruling is None else job.ruling.signals,
        votes=votes_needed(job),
        votes_cast=votes_cast,
        ballot=ballot,
        is_savable=is_savable(faults),
        faults=faults,
        fault=faults.get(ANSWER, ""),
    )


def opener_of(services: Services, job: Job) -> str | None:
    """Return the email of the reviewer who has the answer open; None for nobody."""
    return job.review_lease if (job.review_lease_until or 0) > services.clock() else None


def digest_of(job: Job) -> str:
    """Return a digest of the answer and the draft of `job`. A form sends it back, to prove which ones it showed."""
    return fingerprint(job.response or b"", msgspec.json.encode(job.draft))
