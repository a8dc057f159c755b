"""A column type that stores msgspec structs as JSON."""

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


class JsonColumn(TypeDecorator[Any]):
    """A column whose values are encoded as JSON, and decoded and checked against `value_type` when they are read."""

    impl = sa.LargeBinary
    cache_ok = True

    def __init__(self, value_type: Any) -> None:
        super().__init__()
        self.value_type = value_type
        self._decode = msgspec.json.Decoder(value_type).decode

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        """Return the JSON of `value`."""
        return None if value is None else msgspec.json.encode(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Return the value of a JSON text. Raises msgspec.DecodeError if it is not of the type."""
        return None if value is None else self._decode(value)
