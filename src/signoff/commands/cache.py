"""`signoff cache`: size of the response cache, and clearing it."""

from typing import Annotated

import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import OPERATOR, out, run
from signoff.core.cache import CacheFilter
from signoff.settings import load
from signoff.work.admin.cache import clear_cache, get_cache_size

caches = CommandGroup("Manage the cache of answers.", panel="Data")
User = Annotated[str | None, typer.Option(help="Only answers of the user with this e-mail address.")]
OfModel = Annotated[str | None, typer.Option("--model", help="Only answers of this model.")]
Target = Annotated[str | None, typer.Option(help="Only answers to requests that named this model, prompt or pipeline.")]
Key = Annotated[str | None, typer.Option(help="Only the answer with this key (`cache_key` of a job).")]


@caches.register("clear", "signoff cache clear --model gpt-4o")
def cache_clear(user: User = None, model: OfModel = None, target: Target = None, key: Key = None) -> None:
    """Delete cached answers; jobs are not changed."""
    settings = load()
    cache_filter = CacheFilter(key=key, model=model, target=target)
    deleted = run(settings, lambda services: clear_cache(services, OPERATOR, cache_filter, user))
    if settings.cache == "memory":
        out.print("Every process drops its whole cache, whatever the options.")
    else:
        out.print(f"Deleted answers: {deleted}.")


@caches.register("size", "signoff cache size --user ann@example.com")
def cache_size(user: User = None, model: OfModel = None, target: Target = None) -> None:
    """Print the number of cached answers and their size."""
    settings, cache_filter = load(), CacheFilter(model=model, target=target)
    if settings.cache == "memory":
        out.print("Every process has its own cache; GET /api/cache returns the size of the one that responds.")
        return
    size = run(settings, lambda services: get_cache_size(services, OPERATOR, cache_filter, user))
    out.print(f"Answers: {size.entries}; bytes: {size.size_bytes}.")
