"""Tables in the settings, which are lists of objects."""

from collections.abc import Callable
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from signoff.core.stream import Stream, public_address, stream_fault


class StreamSettings(BaseModel):
    """Stream that the settings declare: a table `[[streams]]` in the file. `core.stream.Stream` has the meanings."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    name: str
    url: SecretStr
    requests: str
    responses: str
    max_handlers: int = 16
    backoff_max_seconds: float = 30
    user: str | None = Field(None, alias="as")

    @model_validator(mode="after")
    def _check(self) -> Self:
        fault = stream_fault(self.sealed(str.encode))
        if fault is not None:
            raise ValueError(fault)
        return self

    def sealed(self, seal: Callable[[str], bytes]) -> Stream:
        """Return the stream, with its URL encrypted by `seal`."""
        scheme, host = public_address(self.url.get_secret_value())
        fields = self.model_dump(exclude={"url"})
        return Stream(scheme=scheme, host=host, sealed=seal(self.url.get_secret_value()), **fields)
