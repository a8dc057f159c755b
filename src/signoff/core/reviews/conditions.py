"""Conditions of policies: expressions in the Common Expression Language (CEL), compiled once per version."""

from collections.abc import Mapping
from typing import Any, cast

from signoff.core.reviews.expression import BadExpressionError, check_expression

# Beyond these an evaluation fails, so that its time is bounded whatever is in the request and the answer.
MAX_TEXT_LENGTH = 1_000_000
MAX_ITEMS = 200
MAX_VALUES = 10_000


class Condition:
    """A compiled expression.

    Raises BadExpressionError, whose message has the position of the fault.
    """

    def __init__(self, source: str) -> None:
        checked = check_expression(source)
        self.reads = checked.reads
        """Values that the expression reads, such as `answer.text` or `cost`."""
        import cel  # its import takes a quarter of a second, which servers without policies do not spend

        try:
            self._program = cel.compile(source)
        except Exception as error:  # noqa: BLE001 -- the package parses once more, and may know more
            raise BadExpressionError(" ".join(str(error).split())[:300]) from None
        for pattern in checked.patterns:
            try:
                cel.evaluate(f'"".matches({pattern})')
            except Exception:  # noqa: BLE001 -- of any kind
                place = f"line {pattern.line}, column {pattern.column}"
                raise BadExpressionError(f"{place}: this is not a regular expression, or too large a one") from None

    def is_met(self, values: Mapping[str, Any]) -> bool:
        """Return the result for these values, by root and field. Raises an Exception of any kind if it fails."""
        result: Any = self._program.execute(cast("dict[str, Any]", values))
        if not isinstance(result, bool):
            raise TypeError("the result of a condition must be true or false")
        return result


def check_size(value: object) -> None:
    """Raise ValueError if `value` has too long a text or too many items for an evaluation."""
    values, stack = 0, [value]
    while stack:
        each = stack.pop()
        values += 1
        size = len(cast("list[object]", each)) if isinstance(each, dict | list | tuple | str) else 0
        if values > MAX_VALUES or size > (MAX_TEXT_LENGTH if isinstance(each, str) else MAX_ITEMS):
            raise ValueError("the answer or the request is too large for a condition")
        if isinstance(each, dict):
            stack += cast("dict[str, object]", each).values()
            stack += cast("dict[str, object]", each)
        elif isinstance(each, list | tuple):
            stack += cast("list[object]", each)
