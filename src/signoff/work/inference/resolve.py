"""Target: what a name stands for: a model, or a prompt or pipeline that its caller may use."""

from __future__ import annotations

from collections.abc import Sequence

from signoff.core.access import Caller
from signoff.core.filters import LibraryFilter
from signoff.core.model import Model
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem
from signoff.errors import ModelNotFound
from signoff.work.services import Services

MAX_LISTED = 1000


async def resolve_target(services: Services, caller: Caller, name: str | None) -> Model | LibraryItem:
    """The model of exactly that name, else the prompt or pipeline, else the model whose name ends in a fitting `*`.

    After `@` comes a label or a version. Raises ModelNotFound, also for what is not the caller's to see.
    """
    if name is None or services.caches.models.has_exact(name):
        return await services.caches.models.find(name)
    await services.caches.models.all()  # now they are known here, if they were not
    if services.caches.models.has_exact(name):
        return await services.caches.models.find(name)
    if (composed := await _composed(services, caller, name, anew=False)) is not None:
        return composed
    try:
        return await services.caches.models.find(name)
    except ModelNotFound:
        composed = await _composed(services, caller, name, anew=True)
        if composed is None:
            raise
        return composed


async def list_targets(services: Services, caller: Caller) -> Sequence[Model | LibraryItem]:
    """Every model, and what else the caller may use under a name, so far as it is not hidden behind a model."""
    models = await services.caches.models.all()
    which = LibraryFilter(user_id=None if caller.role == "admin" else caller.user_id, limit=MAX_LISTED)
    composed = await services.store.library.list(which)
    names = {model.name for model in models}
    return [*models, *(each for each in composed if each.name not in names)]


def may_use_item(caller: Caller, composed: LibraryItem) -> bool:
    """Whether it is the caller's own, or shared with everybody, or the caller an admin."""
    return composed.shared or composed.user_id == caller.user_id or caller.role == "admin"


async def _composed(services: Services, caller: Caller, name: str, *, anew: bool) -> LibraryItem | None:
    own_name, _, at = name.partition("@")
    version = int(at) if at.isascii() and at.isdigit() and len(at) < 10 else at or PRODUCTION
    found = await services.caches.library.find(own_name, version, refresh=anew)
    return found if found is not None and may_use_item(caller, found) else None
