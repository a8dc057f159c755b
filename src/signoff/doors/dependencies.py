"""Parameters of Litestar's handlers: the request, and dependencies that are injected by name."""

from typing import Any, cast

from litestar import Request
from litestar.di import NamedDependency

from signoff.core.access import Caller
from signoff.doors.http import DoorSettings, Scope
from signoff.work.services import Services

AnyRequest = Request[Any, Any, Any]
InjectedServices = NamedDependency[Services]
InjectedSettings = NamedDependency[DoorSettings]
InjectedCaller = NamedDependency[Caller]


def scope_of(request: AnyRequest) -> Scope:
    """Return the plain ASGI scope of a Litestar request."""
    return cast("Scope", request.scope)
