"""Differences between two texts, word by word, or line by line where they are long."""

import difflib
import re
from typing import NamedTuple

# The comparison takes time by the product of the numbers of words.
MAX_WORDS, MAX_LINES = 1500, 3000
_WORD, _LINE = re.compile(r"\w+|\s+|[^\w\s]"), re.compile(r"[^\n]*\n|[^\n]+")


class Change(NamedTuple):
    """Stretch of a text that was added, removed, or is in both texts."""

    kind: str
    """`added`, `removed` or `same`."""
    text: str


def difference(old: str, new: str) -> list[Change]:
    """Return the stretches that lead from `old` to `new`; texts that are too long are removed and added as a whole.

    >>> [tuple(change) for change in difference("a red car", "a blue car")]
    [('same', 'a '), ('removed', 'red'), ('added', 'blue'), ('same', ' car')]
    """
    pieces = [_WORD.findall(text) for text in (old, new)]
    if max(map(len, pieces)) > MAX_WORDS:
        pieces = [_LINE.findall(text) for text in (old, new)]
    if max(map(len, pieces)) > MAX_LINES:
        pieces = [[text] for text in (old, new)]
    before, after = pieces
    changes = list[Change]()
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            changes.append(Change("same", "".join(before[i1:i2])))
            continue
        removed, added = "".join(before[i1:i2]), "".join(after[j1:j2])
        changes += [Change(kind, text) for kind, text in (("removed", removed), ("added", added)) if text]
    return changes


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
