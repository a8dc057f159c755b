"""The plug-in of Litestar that serves the OpenAPI document."""

from typing import Any

import msgspec
from litestar.openapi.plugins import JsonRenderPlugin

from signoff.doors.dependencies import AnyRequest, scope_of
from signoff.doors.http import MOUNT


class Document(JsonRenderPlugin):
    """Renderer of the document at `/schema/openapi.json`."""

    def __init__(self) -> None:
        super().__init__()
        self._whole: dict[str, Any] | None = None

    def render(self, request: AnyRequest, openapi_schema: dict[str, Any]) -> bytes:
        """Return the document as JSON."""
        if self._whole is None:
            from signoff.doors.openapi.document import complete  # its types are of no use to other requests

            self._whole = complete(openapi_schema)
        root = scope_of(request).get(MOUNT, "")
        return msgspec.json.encode(self._whole | ({"servers": [{"url": root}]} if root else {}))
