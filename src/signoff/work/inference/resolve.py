"""Targets: find the model, prompt or pipeline that a name stands for."""

from collections.abc import Sequence

import msgspec

from signoff.core.access import Caller
from signoff.core.filters import LibraryFilter
from signoff.core.model import Model
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem
from signoff.errors import ModelNotFound
from signoff.work.services import Services

MAX_LISTED = 1000


async def resolve_target(services: Services, caller: Caller, name: str | None) -> Model | LibraryItem:
    """Return the model of exactly this name, else the prompt or pipeline, else the model whose pattern (`gpt-*`) fits.

    A prompt or pipeline of another user precedes a pattern only if that user is an admin. A name of a
    prompt or pipeline may end in `@` and a label or version. None is the default model.
    Raises ModelNotFound, also for an item that the caller may not see.
    """
    if name is None or await services.caches.models.contains(name):
        return await services.caches.models.find(name)
    item = await _find_item(services, caller, name, refresh=False)
    if item is not None and await precedes_patterns(services, caller, item, name):
        return item
    try:
        return await services.caches.models.find(name)
    except ModelNotFound:
        item = await _find_item(services, caller, name, refresh=True)
        if item is None:
            raise
        return item


class LibraryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt or pipeline in a list, without its text."""

    name: str
    """Name of the item."""
    created_at: int
    """Time of its production version; microseconds since 1970, UTC."""


async def list_targets(services: Services, caller: Caller) -> Sequence[Model | LibraryEntry]:
    """Return all models, and the prompts and pipelines that the caller may use under their names.

    A prompt or pipeline is left out if a request with its name goes to a model, and so is a model whose name is a
    pattern (ends in `*`). At most MAX_LISTED prompts and pipelines are read.
    """
    models = await services.caches.models.all()
    names = {model.name for model in models}
    entries, number, after = list[LibraryEntry](), 0, ""
    while number < MAX_LISTED:
        user_id = None if caller.role == "admin" else caller.user_id
        library_filter = LibraryFilter(user_id=user_id, after=after, limit=MAX_LISTED - number)
        page = await services.store.library.list(library_filter)
        entries += [
            LibraryEntry(name=item.name, created_at=item.created_at)
            for item in page
            if item.name not in names and await precedes_patterns(services, caller, item, item.name)
        ]
        if not page or not page.may_continue:
            break
        number, after = number + len(page), page[-1].name
    return [*(model for model in models if not model.name.endswith("*")), *entries]


async def precedes_patterns(services: Services, caller: Caller, item: LibraryItem, name: str) -> bool:
    """Return True if `name` means the item and not a model whose pattern fits: no user may replace another's model."""
    if item.user_id == caller.user_id or not await services.caches.models.is_hidden_by_pattern(name):
        return True
    return await services.caches.callers.is_admin(item.user_id)


def may_use_item(caller: Caller, item: LibraryItem) -> bool:
    """Return True if the item is the caller's own or shared, or the caller is an admin."""
    return item.shared or item.user_id == caller.user_id or caller.role == "admin"


async def _find_item(services: Services, caller: Caller, name: str, *, refresh: bool) -> LibraryItem | None:
    base_name, _, label = name.partition("@")
    version = int(label) if label.isascii() and label.isdigit() and len(label) < 10 else label or PRODUCTION
    item = await services.caches.library.find(base_name, version, refresh=refresh)
    return item if item is not None and may_use_item(caller, item) else None
