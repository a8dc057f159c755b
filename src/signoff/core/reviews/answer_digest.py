"""Digests of answers, by which an edit of an audited answer is compared with the original.

Changes of whitespace, and others that the owner of an error budget calls harmless, do not change a digest.
"""

import hashlib
import unicodedata
from typing import Any, Literal, cast

import msgspec

Harmless = Literal["case", "punctuation"]


def digest_answer(answer: bytes | None, harmless: tuple[Harmless, ...] = ()) -> str:
    """Return the digest of an answer, as JSON; None stands for no answer.

    Args:
        answer: The answer.
        harmless: Kinds of edits that do not change the digest, besides those of whitespace.
    """
    try:
        value: Any = msgspec.json.decode(answer or b"null")
    except (ValueError, RecursionError):
        return hashlib.sha256(answer or b"").hexdigest()
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value) | {"usage": None}  # an edit may add it
    return hashlib.sha256(msgspec.json.encode(_normalized(value, harmless), order="deterministic")).hexdigest()


def _normalized(value: Any, harmless: tuple[Harmless, ...]) -> Any:
    if isinstance(value, str):
        return _normalized_text(value, harmless)
    if isinstance(value, list):
        return [_normalized(item, harmless) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {name: _normalized(member, harmless) for name, member in members.items()}
    return value


def _normalized_text(text: str, harmless: tuple[Harmless, ...]) -> str:
    text = "".join(text.split())
    if "case" in harmless:
        text = text.casefold()
    if "punctuation" in harmless:
        text = "".join(each for each in text if not unicodedata.category(each).startswith("P"))
    return text
