"""What `signoff doctor` looks at: each thing that the server needs, and how it was found."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable

import msgspec

from signoff.server import bootstrap as composition
from signoff.settings import Settings


class CheckResult(msgspec.Struct, frozen=True):
    """One finding."""

    name: str
    is_ok: bool
    detail: str


async def checks(settings: Settings) -> list[CheckResult]:
    """All findings; none of them raises."""
    return [
        CheckResult("Python", is_ok=True, detail=sys.version.split()[0]),
        await _tried("data folder", lambda: _data_folder(settings)),
        await _tried("database", lambda: _database(settings)),
        await _tried("broker", lambda: composition.check_broker(settings)),
        await _tried("Redis", lambda: composition.check_redis(settings)),
    ]


async def _tried(what: str, check: Callable[[], Awaitable[str]]) -> CheckResult:
    try:
        return CheckResult(what, is_ok=True, detail=await check())
    except Exception as error:  # noqa: BLE001 -- a doctor reports whatever it finds
        return CheckResult(what, is_ok=False, detail=str(error) or repr(error))


async def _data_folder(settings: Settings) -> str:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(settings.data_dir, os.W_OK):
        msg = f"{settings.data_dir} cannot be written to."
        raise PermissionError(msg)
    return str(settings.data_dir.absolute())


async def _database(settings: Settings) -> str:
    async with composition.open_services(settings) as services:
        users = await services.store.people.users()
        models = await services.caches.models.all()
    return f"answers, {len(users)} users, models: {', '.join(model.name for model in models)}"
