"""`signoff cache`."""

from __future__ import annotations

from typing import Annotated

import typer

from signoff.commands.terminal import OPERATOR, out, run
from signoff.core.cache import CacheFilter
from signoff.settings import load
from signoff.work.admin.cache import clear_cache, get_cache_size

caches = typer.Typer(help="Answers that can be given again.")
User = Annotated[str | None, typer.Option(help="Of this user alone: an e-mail address.")]
OfModel = Annotated[str | None, typer.Option("--model", help="Of this model alone.")]
Target = Annotated[str | None, typer.Option(help="Of what was asked for under this name alone.")]
Key = Annotated[str | None, typer.Option(help="This one alone: a job's cache_key.")]


@caches.command("clear")
def cache_clear(user: User = None, model: OfModel = None, target: Target = None, key: Key = None) -> None:
    """Forgets answers before their time; the jobs stay as they are."""
    settings = load()
    which = CacheFilter(key=key, model=model, target=target)
    deleted = run(settings, lambda services: clear_cache(services, OPERATOR, which, user))
    if settings.cache == "memory":
        out.print("Every process forgets all that it keeps.")
    else:
        out.print(f"Answers forgotten: {deleted}.")


@caches.command("size")
def cache_size(user: User = None, model: OfModel = None, target: Target = None) -> None:
    """How many answers are kept, and their bytes."""
    settings = load()
    if settings.cache == "memory":
        out.print("Every process keeps its own: GET /api/cache tells how many.")
        return
    size = run(
        settings, lambda services: get_cache_size(services, OPERATOR, CacheFilter(model=model, target=target), user)
    )
    out.print(f"Answers: {size.entries}; bytes: {size.size_bytes}.")
