"""A run of a pipeline: its calls by their places in the tree, and the calls of functions that it leaves behind."""

from __future__ import annotations

from signoff.core.pipelines.tree import Call

ROOT = "0"


def calls_by_node(tree: Call) -> dict[str, Call]:
    """Every call under its place, in the order of the text: the outermost is "0", its second argument "0.1"."""
    found, waiting = dict[str, Call](), [(ROOT, tree)]
    while waiting:
        node, call = waiting.pop()
        found[node] = call
        below = [(f"{node}.{index}", arg.value) for index, arg in enumerate(call.args) if isinstance(arg.value, Call)]
        waiting += reversed(below)
    return found


def ancestors(node: str) -> tuple[str, ...]:
    """The places that need what `node` gives, the next one first.

    >>> above("0.1.0")
    ('0.1', '0')
    """
    parts = node.split(".")
    return tuple(".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
