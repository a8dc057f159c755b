"""Signal values as they are stored with a job: what a reviewer can read at a glance, and not the texts of the job."""

from collections.abc import Mapping
from typing import Any

import msgspec

# Values that are in the request and in the answer of the job anyway.
OMITTED = frozenset({"answer.text", "answer.tool_calls", "answer.refusal"})
MAX_BYTES = 2000


def storable_signals(values: Mapping[str, Any], root: str = "request") -> dict[str, Any]:
    """Return the values of the fields of `root` by full names (`answer.length`), without texts and large values."""
    named = {f"{root}.{name}": value for name, value in values.items()}
    return {name: value for name, value in named.items() if name not in OMITTED and _is_small(value)}


def _is_small(value: object) -> bool:
    try:
        return len(msgspec.json.encode(value)) <= MAX_BYTES
    except (TypeError, ValueError, RecursionError):
        return False
