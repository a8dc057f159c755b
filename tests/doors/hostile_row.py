"""A row of the table of every route, and the callers that the table is about."""

from __future__ import annotations

from typing import Any, NamedTuple

# Callers with a valid token, in the order of the statuses of a row. `owner` owns every object of the table.
KNOWN_CALLERS = ("other", "owner", "reviewer", "admin")
# Callers without one, who get a 401 except from public routes.
UNKNOWN_CALLERS = ("no token", "disabled user", "expired token")
PUBLIC = "public"
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
FORM = {"content-type": "application/x-www-form-urlencoded"}


class Row(NamedTuple):
    """A request, and its statuses. Texts such as `<ended>` stand for objects of the owner."""

    route: str
    """Method and path, as in the OpenAPI document."""
    statuses: str
    """Statuses for KNOWN_CALLERS; or PUBLIC and the status for every caller, or two statuses as in `200/503`."""
    address: str = ""
    """Path and query; empty for the path of the route."""
    body: Any = None
    """Body, as JSON unless it is a text."""
    headers: dict[str, str] = {}  # noqa: RUF012 -- a default that nothing changes
    """Headers beside the token."""
    is_last: bool = False
    """True if the request takes away what other requests of its caller need, so that it comes after them."""

    @property
    def path(self) -> str:
        """Path and query of the request."""
        return self.address or self.route.partition(" ")[2]

    @property
    def is_new(self) -> bool:
        """True if the request creates an object, with a name that each caller has for itself."""
        return "<caller>" in f"{self.path}{self.body}"

    @property
    def names_object(self) -> bool:
        """True if the request names an object of the owner."""
        return not self.is_new and "<" in f"{self.path}{self.body}"
