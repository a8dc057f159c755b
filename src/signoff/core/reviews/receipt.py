"""Receipts: signed records of the decisions on held answers, each of which names the hash of the one before.

A receipt is one line of JSON in the form of RFC 8785 (JCS): members in the order of their names, no white space, and
only integers below 2^53, texts, booleans, null, arrays and objects as values. Its member `signature` is an Ed25519
signature (RFC 8032, in base64) of `SIGNED_PREFIX` followed by the record without that member. The hash of a receipt is
the SHA-256 of the record without its signature, in hexadecimal.

The contents of a review are in no receipt. Their digests are HMAC-SHA256 with a random salt of each decision, which is
stored with the job and deleted with it; after that, nobody can guess what a digest stands for.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import msgspec

from signoff.core.job import Decision, Edit, Job, Verdict
from signoff.core.transitions import TRANSITIONS

FORMAT = 1
SALT_BYTES = 32
FIRST_HASH = "0" * 64
SIGNED_PREFIX = b"signoff receipt\n"
HEAD_PREFIX = b"signoff head\n"
# Reviewer in the receipt of an outcome that the deadline of a policy has brought about.
BY_DEADLINE = "policy"
Sign = Callable[[bytes], bytes]
"""A function that returns the Ed25519 signature of a message."""


class Shown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Digests of what the reviewer had before them."""

    input: str
    """Digest of the request, as it was sent to the model."""
    answer: str | None
    """Digest of the model's answer; null if there was none."""
    draft: str | None
    """Digest of the saved draft, as JSON; null if there was none."""


class ReceiptVote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reviewer's vote in a round."""

    reviewer: str
    """Email of the reviewer."""
    verdict: str
    """Verdict that they gave."""


class OpenTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time for which a reviewer had the answer open."""

    reviewer: str
    """Email of the reviewer."""
    us: int
    """Microseconds in all."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """Place of a receipt in the chain."""

    seq: int
    """Number of the receipt, from 1, without gaps."""
    at: int
    """Time of the transaction by the database's clock, in microseconds since 1970, UTC."""
    before: str
    """Hash of the receipt before; `FIRST_HASH` in the first one."""
    key: str
    """Id of the key that signs the receipt."""


class VerdictReceipt(Link, frozen=True, kw_only=True, tag="verdict", tag_field="kind", forbid_unknown_fields=True):
    """Receipt of a decision that has taken effect."""

    format: int = FORMAT
    """Version of this format."""
    job_id: str
    """Id of the job."""
    round: int
    """Review round of the decision."""
    verdict: Verdict
    """`approve` released the answer, `redo` sent the request to the model again, `reject` withheld the answer."""
    reviewer: str
    """Email of the reviewer who decided; `policy` for an outcome at the deadline."""
    votes: tuple[ReceiptVote, ...]
    """Votes of the round, by reviewer."""
    policy: str | None
    """Name of the policy that held the answer; null if the review mode of the model or of the door did."""
    policy_version: int | None
    """Version of that policy."""
    target: str
    """Name of the model or pipeline that was requested."""
    model: str
    """Name of the model that answered."""
    held_at: int | None
    """Time at which the answer was held."""
    decided_at: int
    """Time of the verdict."""
    open: tuple[OpenTime, ...]
    """Time for which each reviewer had the answer open since it was held, by reviewer."""
    shown: Shown
    """Digests of what was shown."""
    edit: str | None
    """Digest of the reviewer's edit, as JSON; null if nothing was edited."""
    reason: str | None
    """Digest of the reason; null if there was none."""
    released: str | None
    """Digest of the answer that was released, which is that of `shown.answer` if nobody edited it; null if none was."""


class KeyReceipt(Link, frozen=True, kw_only=True, tag="key", tag_field="kind", forbid_unknown_fields=True):
    """Receipt of a new signing key, which signs all following receipts.

    The old key signs it. The first key, and one that replaces a lost key, signs its own receipt, and a verifier trusts
    it only if it is pinned.
    """

    format: int = FORMAT
    """Version of this format."""
    new_key: str
    """Id of the new key."""
    public_key: str
    """New public key, as 32 bytes in base64."""


class ArchiveReceipt(Link, frozen=True, kw_only=True, tag="archive", tag_field="kind", forbid_unknown_fields=True):
    """Receipt of the removal of old receipts from the database, which anchors those that remain."""

    format: int = FORMAT
    """Version of this format."""
    archived_until: int
    """Number of the last receipt that was removed."""
    archived_hash: str
    """Hash of that receipt."""


Receipt = VerdictReceipt | KeyReceipt | ArchiveReceipt


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Signed statement of the number of receipts. Exported on its own, it shows later that none was removed."""

    format: int = FORMAT
    """Version of this format."""
    count: int
    """Number of the last receipt."""
    hash: str
    """Hash of the last receipt."""
    at: int
    """Time of the statement, in microseconds since 1970, UTC."""
    key: str
    """Id of the key that signs it."""
    signature: str = ""
    """Ed25519 signature of `HEAD_PREFIX` and of the statement with an empty signature, in base64."""


def canonical_json(value: Any) -> bytes:
    """Return the JSON of a struct as RFC 8785 has it, given that names are ASCII and numbers are integers."""
    builtins = msgspec.to_builtins(value)
    return json.dumps(builtins, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def hash_of(receipt: Receipt) -> str:
    """Return the hash by which the next receipt names this one."""
    return hashlib.sha256(canonical_json(receipt)).hexdigest()


def signed_line(receipt: Receipt, sign: Sign) -> bytes:
    """Return the line of a receipt, with its signature and without a line feed."""
    signature = base64.b64encode(sign(SIGNED_PREFIX + canonical_json(receipt))).decode()
    return canonical_json(msgspec.to_builtins(receipt) | {"signature": signature})


def signed_head(head: Head, sign: Sign) -> Head:
    """Return the statement with its signature."""
    signature = base64.b64encode(sign(HEAD_PREFIX + canonical_json(head))).decode()
    return msgspec.structs.replace(head, signature=signature)


def parse_line(line: bytes) -> tuple[Receipt, bytes]:
    """Return the receipt of a line, and its signature.

    Raises:
        ValueError: The line is not the canonical form of a signed receipt.
    """
    fields = msgspec.json.decode(line, type=dict[str, Any])
    text = fields.pop("signature", None)
    if not isinstance(text, str):
        raise ValueError("it has no signature")  # noqa: TRY004 -- one error for all damaged lines
    receipt = msgspec.convert(fields, Receipt)
    if canonical_json(msgspec.to_builtins(receipt) | {"signature": text}) != line:
        raise ValueError("it is not in canonical form")
    return receipt, decode_base64(text)


def decode_base64(text: str) -> bytes:
    """Return the bytes of a text in base64. Raises ValueError unless it is the only text for these bytes."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("its base64 is not canonical")
    return data


def salted_digest(salt: bytes, label: str, content: bytes | None) -> str | None:
    """Return HMAC-SHA256(salt, label + LF + content) in hexadecimal; None for no content."""
    if content is None:
        return None
    return hmac.new(salt, label.encode() + b"\n" + content, hashlib.sha256).hexdigest()


def key_id(public_key: bytes) -> str:
    """Return the id of a public key: its SHA-256, in hexadecimal."""
    return hashlib.sha256(public_key).hexdigest()


def encode_key(public_key: bytes) -> str:
    """Return a public key as text."""
    return base64.b64encode(public_key).decode()


# Transitions that begin or renew a review lease.
OPENING = frozenset({"open", "renew"})
# Transitions that begin, renew or end a review lease.
EVENTS_OF_OPENING = OPENING | {verb for verb, each in TRANSITIONS.items() if "review_lease_until" in each.clears}


class ReviewEvent(msgspec.Struct, frozen=True):
    """An event of a job, as far as it matters for its review."""

    verb: str
    """Transition of the event."""
    actor: str
    """Actor of the event."""
    at: int
    """Time of the event, in microseconds since 1970, UTC."""
    open_until: int | None = None
    """End of the review lease that the event has begun or renewed; None if it did not."""


class ReviewTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Times of the review of a held answer."""

    held_at: int | None
    """Time at which the answer was held; None if that event is not stored."""
    decided_at: int
    """Time of the verdict, or of the end of the review without one."""
    open: tuple[OpenTime, ...]
    """Time for which each reviewer had the answer open, by reviewer."""


def review_times(events: list[ReviewEvent], ended_at: int) -> ReviewTimes:
    """Return the times of the review that `events` end with; they are in order, and it ended at `ended_at`.

    A review lease that nobody gave up ends when it lapses.
    """
    begin = next((index for index in reversed(range(len(events))) if events[index].verb == "hold"), None)
    following = [event for event in events[begin or 0 :] if event.verb in EVENTS_OF_OPENING]
    decided_at = next((event.at for event in reversed(following) if event.verb == "decide"), ended_at)
    sums, holder, since, until = dict[str, int](), None, 0, 0
    for event in [*following, ReviewEvent("end", "", ended_at)]:
        if holder is not None:
            sums[holder] = sums.get(holder, 0) + max(0, min(event.at, until) - since)
        holder = None if event.open_until is None else event.actor.removeprefix("user:")
        since, until = event.at, event.open_until or 0
    open_times = tuple(OpenTime(reviewer=reviewer, us=us) for reviewer, us in sorted(sums.items()) if us)
    return ReviewTimes(held_at=None if begin is None else events[begin].at, decided_at=decided_at, open=open_times)


class ReceiptDraft(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that takes effect, as the transaction has it before the receipt is written."""

    before: Job
    """The job as the reviewer saw it."""
    after: Job
    """The job after the transition."""
    decision: Decision
    """The decision."""


# Transitions with which a held answer leaves the review for good; each leaves a receipt.
SIGNED = frozenset({"approve", "redo", "reject", "expire"})


def draft_of(verb: str, before: Job, after: Job, decision: Decision | None) -> ReceiptDraft | None:
    """Return the draft of the receipt for a transition of a held job; None if it decides nothing.

    Args:
        verb: Transition.
        before: The job before it.
        after: The job after it.
        decision: Decision that was made in the same transaction; None if it was made before.
    """
    if verb not in SIGNED or after.status == "human":
        return None
    decision = decision or before.decision or after.decision
    if verb == "expire":
        verdict: Verdict = "approve" if after.status == "success" else "reject"
        decision = Decision(verdict=verdict, reviewer=BY_DEADLINE)
    return None if decision is None else ReceiptDraft(before=before, after=after, decision=decision)


def verdict_receipt(
    draft: ReceiptDraft, place: dict[str, Any], *, salt: bytes, times: ReviewTimes, votes: tuple[ReceiptVote, ...]
) -> VerdictReceipt:
    """Return the receipt of a decision.

    Args:
        draft: The decision.
        place: Fields of `Link`, by name.
        salt: Random bytes of this receipt, for its digests.
        times: Times of the review.
        votes: Votes of the round, by reviewer.
    """
    before, decision, ruling = draft.before, draft.decision, draft.before.ruling
    saved = None if before.draft is None else msgspec.json.encode(before.draft)
    edit = None if decision.edit == Edit() else msgspec.json.encode(decision.edit)
    reason = None if decision.reason is None else decision.reason.encode()
    return VerdictReceipt(
        **place,
        job_id=before.id,
        round=before.round,
        verdict=decision.verdict,
        reviewer=decision.reviewer,
        votes=votes,
        policy=None if ruling is None else ruling.policy,
        policy_version=None if ruling is None else ruling.version,
        target=before.target,
        model=before.model,
        held_at=times.held_at,
        decided_at=times.decided_at,
        open=times.open,
        shown=Shown(
            input=salted_digest(salt, "input", before.body) or "",
            answer=salted_digest(salt, "answer", before.response),
            draft=salted_digest(salt, "draft", saved),
        ),
        edit=salted_digest(salt, "edit", edit),
        reason=salted_digest(salt, "reason", reason),
        released=salted_digest(salt, "answer", draft.after.response) if draft.after.status == "success" else None,
    )
