"""Nodes: positions of calls in the tree of a pipeline."""

from signoff.core.pipelines.tree import Call

ROOT = "0"


def calls_by_node(tree: Call) -> dict[str, Call]:
    """Return every call by its node, in the order of the text: the outermost is "0", its second argument "0.1"."""
    calls, stack = dict[str, Call](), [(ROOT, tree)]
    while stack:
        node, call = stack.pop()
        calls[node] = call
        below = [(f"{node}.{index}", arg.value) for index, arg in enumerate(call.args) if isinstance(arg.value, Call)]
        stack += reversed(below)
    return calls


def ancestors(node: str) -> tuple[str, ...]:
    """Return the nodes of the calls around `node`, the innermost first.

    >>> ancestors("0.1.0")
    ('0.1', '0')
    """
    parts = node.split(".")
    return tuple(".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
