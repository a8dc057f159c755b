"""Manage: what admins do with models at a door, and what anybody may see of them."""

from __future__ import annotations

from collections.abc import Sequence

from signoff.core.access import Caller
from signoff.core.target import Model
from signoff.errors import Forbidden
from signoff.parts.logs import Entry
from signoff.work.desk import Desk
from signoff.work.models import forget, model_called, register


async def add_model(desk: Desk, caller: Caller, model: Model, secret: str | None = None, *, commands: bool) -> None:
    """Registers a model, or changes one. Raises Forbidden, BadRequest, AddressRefused.

    `commands`: whether this caller's way here is one on which programs may be named.
    """
    check_admin(caller)
    if model.command and not commands:
        raise Forbidden(
            "A command is taken by a server that listens on a loopback address, or with allow_remote_commands; "
            "`signoff model add` takes it always."
        )
    await register(desk, model, secret)


async def remove_model(desk: Desk, caller: Caller, name: str) -> None:
    """Takes a registered model out of the catalog. Raises Forbidden, ModelNotFound."""
    check_admin(caller)
    await forget(desk, name)


async def log_of(desk: Desk, name: str) -> Sequence[Entry]:
    """What the model wrote, and how it failed, on this host. Raises ModelNotFound."""
    return await desk.logs.read((await model_called(desk, name)).name)


async def clean_log(desk: Desk, caller: Caller, name: str) -> None:
    """Empties that log. Raises Forbidden, ModelNotFound."""
    check_admin(caller)
    await desk.logs.clean((await model_called(desk, name)).name)


def check_admin(caller: Caller) -> None:
    """Raises Forbidden for all others."""
    if caller.role != "admin":
        raise Forbidden("Only an admin may do that.")
