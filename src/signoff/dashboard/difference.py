"""Differences between two texts, word by word, or line by line where they are long."""

import difflib
import re
from collections import Counter
from typing import NamedTuple

# The comparison takes time by the number of equal pairs of pieces, one of each text, and by the number of changes.
MAX_WORDS, MAX_LINES, MAX_PAIRS = 1500, 3000, 30_000
_WORD, _LINE = re.compile(r"\w+|\s+|[^\w\s]"), re.compile(r"[^\n]*\n|[^\n]+")


class Change(NamedTuple):
    """Stretch of a text that was added, removed, or is in both texts."""

    kind: str
    """`added`, `removed` or `same`."""
    text: str


def difference(old: str, new: str) -> list[Change]:
    """Return the stretches that lead from `old` to `new`.

    Texts that are too long, or repeat themselves too often, are compared by lines, or removed and added as a whole.

    >>> [tuple(change) for change in difference("a red car", "a blue car")]
    [('same', 'a '), ('removed', 'red'), ('added', 'blue'), ('same', ' car')]
    """
    before, after = _WORD.findall(old), _WORD.findall(new)
    if not _is_quick(before, after, MAX_WORDS):
        before, after = _LINE.findall(old), _LINE.findall(new)
    if not _is_quick(before, after, MAX_LINES):
        before, after = [old], [new]
    changes = list[Change]()
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(str.isspace, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            changes.append(Change("same", "".join(before[i1:i2])))
            continue
        removed, added = "".join(before[i1:i2]), "".join(after[j1:j2])
        changes += [Change(kind, text) for kind, text in (("removed", removed), ("added", added)) if text]
    return changes


def _is_quick(before: list[str], after: list[str], most: int) -> bool:
    """Return True if the comparison of these pieces, in which blanks do not count, takes less than a second."""
    if max(len(before), len(after)) > most:
        return False
    counts = Counter(after)
    return sum(counts[piece] for piece in before if not piece.isspace()) <= MAX_PAIRS


def line_difference(old: str, new: str) -> list[tuple[str, str]]:
    r"""Return the changed lines with those around them: `added`, `removed` or an empty kind, and the line.

    >>> line_difference("a\nb", "a\nc")
    [('', 'a'), ('removed', 'b'), ('added', 'c')]
    """
    return unified_lines("\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="")))


def unified_lines(text: str) -> list[tuple[str, str]]:
    """Return the lines of a unified diff after its head, as `line_difference` does."""
    kinds = {"+": "added", "-": "removed"}
    return [(kinds.get(line[:1], ""), line[1:]) for line in text.splitlines()[2:] if not line.startswith("@@")]


def count_words(changes: list[Change], kind: str) -> int:
    """Return the number of words in the stretches of this kind."""
    return sum(len(change.text.split()) for change in changes if change.kind == kind)
