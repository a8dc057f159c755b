"""The ASGI application `signoff.asgi:app`: what its start does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from signoff.asgi import Application
from signoff.core.pipelines.function import Function
from signoff.server.bootstrap import open_services
from signoff.settings import Settings
from support.database_files import make_file

pytestmark = pytest.mark.anyio


async def start_and_stop(application: Application) -> list[str]:
    """Run the ASGI lifespan once; return the types of the messages."""
    types = list[str]()

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.shutdown" if types else "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        types.append(message["type"])

    await application({"type": "lifespan"}, receive, send)
    return types


ADD, GONE = Function(name="add"), Function(name="gone", module="custom_gone")


@pytest.mark.parametrize(
    ("registered", "custom"),
    [([], "own"), ([GONE], "gone"), ([GONE, ADD], "gone")],
    ids=["no functions, as if a token came first", "no builtins", "the builtins of an older version"],
)
async def test_each_start_registers_the_builtins_that_are_missing(
    registered: list[Function], custom: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    make_file(settings.data_dir / "signoff.db")
    (tmp_path / "data" / "functions").mkdir()
    (tmp_path / "data" / "functions" / "custom_own.py").write_text("def own(): return 1\n")
    async with open_services(settings) as services:
        await services.store.library.sync(registered)

    for _ in range(2):
        types = await start_and_stop(Application(settings, work=False))
        assert types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        async with open_services(settings) as services:
            functions = await services.store.library.functions()
        assert {"add", "reduce", custom} <= {function.name for function in functions}
        assert {function.name for function in functions if function.module != "builtins"} == {custom}
