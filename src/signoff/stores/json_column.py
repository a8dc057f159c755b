"""A column whose values are frozen ones of ours, kept as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


class JsonColumn(TypeDecorator[Any]):
    """A frozen value kept as its JSON text; checked against its type when it is read."""

    impl = sa.LargeBinary
    cache_ok = True

    def __init__(self, value_type: Any) -> None:
        super().__init__()
        self.value_type = value_type
        self._decode = msgspec.json.Decoder(value_type).decode

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        """From the value to its JSON."""
        return None if value is None else msgspec.json.encode(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """From its JSON to the value."""
        return None if value is None else self._decode(value)
