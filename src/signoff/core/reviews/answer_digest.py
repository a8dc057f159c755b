"""Digests of answers, by which an edit of an audited or planted answer is compared with the original.

Changes of whitespace, and others that the owner of an error budget calls harmless, do not change a digest.
"""

import hashlib
import unicodedata
from typing import Any, Literal, cast

import msgspec

Harmless = Literal["case", "punctuation"]
# Deeper JSON is compared as it is written. A bound of our own, because that of the interpreter depends on the caller.
MAX_DEPTH = 200


def digest_answer(answer: bytes | None, harmless: tuple[Harmless, ...] = ()) -> str:
    """Return the digest of an answer, as JSON; None stands for no answer.

    Args:
        answer: The answer.
        harmless: Kinds of edits that do not change the digest, besides those of whitespace.
    """
    try:
        text = _normalized_json(answer or b"null", harmless)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply: every edit of it counts
        text = answer or b""
    return hashlib.sha256(text).hexdigest()


def is_wrong(verb: str, answer: bytes | None, digest: str, harmless: tuple[Harmless, ...]) -> bool:
    """Return True if a verdict says that the answer with `digest` was wrong: by its verb, or by an edit that matters.

    Args:
        verb: Transition of the verdict.
        answer: The answer after the verdict.
        digest: Digest of the answer before.
        harmless: Kinds of edits that do not matter, with which `digest` was made.
    """
    return verb != "approve" or digest_answer(answer, harmless) != digest


def mark_planted(answer: bytes, harmless: tuple[Harmless, ...]) -> str:
    """Return the digest of a planted answer, after the kinds of edits that do not change it; see `is_caught`."""
    digest = digest_answer(answer, harmless)
    return f"{','.join(harmless)}:{digest}" if harmless else digest


def is_caught(verb: str, answer: bytes | None, mark: str) -> bool:
    """Return True if a verdict says that a planted answer was wrong, as of an audited one.

    `mark` is that of `mark_planted`. One of before there were kinds in it is the digest alone.
    """
    kinds, _, digest = mark.rpartition(":")
    return is_wrong(verb, answer, digest, tuple(cast("Harmless", kind) for kind in kinds.split(",") if kind))


def _normalized_json(answer: bytes, harmless: tuple[Harmless, ...]) -> bytes:
    value: Any = msgspec.json.decode(answer)
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value) | {"usage": None}  # an edit may add it
    return msgspec.json.encode(_normalized(value, harmless, MAX_DEPTH), order="deterministic")


def _normalized(value: Any, harmless: tuple[Harmless, ...], depth: int) -> Any:
    if isinstance(value, str):
        return _normalized_text(value, harmless)
    if not isinstance(value, list | dict):
        return value
    if depth == 0:
        raise RecursionError
    if isinstance(value, list):
        return [_normalized(item, harmless, depth - 1) for item in cast("list[Any]", value)]
    members = cast("dict[str, Any]", value)
    return {name: _normalized(member, harmless, depth - 1) for name, member in members.items()}


def _normalized_text(text: str, harmless: tuple[Harmless, ...]) -> str:
    text = "".join(text.split())
    if "case" in harmless:
        text = text.casefold()
    if "punctuation" in harmless:
        text = "".join(each for each in text if not unicodedata.category(each).startswith("P"))
    return text
