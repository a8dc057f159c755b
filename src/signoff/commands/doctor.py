"""What `signoff doctor` looks at: each thing that the server needs, and how it was found."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable

import msgspec

from signoff.server import bootstrap as composition
from signoff.settings import Settings
from signoff.work.services import Desk


class Check(msgspec.Struct, frozen=True):
    """One finding."""

    what: str
    fine: bool
    found: str


async def checks(settings: Settings) -> list[Check]:
    """All findings; none of them raises."""
    return [
        Check("Python", fine=True, found=sys.version.split()[0]),
        await _tried("data folder", lambda: _data_folder(settings)),
        await _tried("database", lambda: _database(settings)),
        await _tried("broker", lambda: composition.look_for_broker(settings)),
        await _tried("Redis", lambda: composition.look_for_redis(settings)),
    ]


async def _tried(what: str, check: Callable[[], Awaitable[str]]) -> Check:
    try:
        return Check(what, fine=True, found=await check())
    except Exception as error:  # noqa: BLE001 -- a doctor reports whatever it finds
        return Check(what, fine=False, found=str(error) or repr(error))


async def _data_folder(settings: Settings) -> str:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(settings.data_dir, os.W_OK):
        msg = f"{settings.data_dir} cannot be written to."
        raise PermissionError(msg)
    return str(settings.data_dir.absolute())


async def _database(settings: Settings) -> str:
    async with composition.opened(settings) as desk:
        return (
            f"answers, {await _counted(desk)}, models: {', '.join([model.name for model in await desk.models.all()])}"
        )


async def _counted(desk: Desk) -> str:
    return f"{len(await desk.store.people.users())} users"
