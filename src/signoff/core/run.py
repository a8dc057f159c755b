"""A run of a pipeline: its calls by their places in the tree, and the calls of functions that it leaves behind."""

from __future__ import annotations

import msgspec

from signoff.core.job import JobError
from signoff.core.tree import Call

ROOT = "0"


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a function in a round of a run. `arguments` and `output` are JSON, times are microseconds."""

    job_id: str
    round: int
    node: str
    name: str
    arguments: bytes
    output: bytes | None = None
    error: JobError | None = None
    began_at: int
    ended_at: int


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a step remembers of the call that made it, in its metadata."""

    kind: str
    name: str
    version: int
    arguments: dict[str, str]


def calls_by_node(tree: Call) -> dict[str, Call]:
    """Every call under its place, in the order of the text: the outermost is "0", its second argument "0.1"."""
    found, waiting = dict[str, Call](), [(ROOT, tree)]
    while waiting:
        node, call = waiting.pop()
        found[node] = call
        below = [(f"{node}.{index}", arg.value) for index, arg in enumerate(call.args) if isinstance(arg.value, Call)]
        waiting += reversed(below)
    return found


def above(node: str) -> tuple[str, ...]:
    """The places that need what `node` gives, the next one first.

    >>> above("0.1.0")
    ('0.1', '0')
    """
    parts = node.split(".")
    return tuple(".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
