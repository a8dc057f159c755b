"""Models: which there are, and registering one while everything runs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from signoff.core.address import check_model_url
from signoff.core.target import Model, flaw_of
from signoff.errors import BadRequest, ModelNotFound
from signoff.vault import Unreadable
from signoff.work.desk import Desk


async def all_models(desk: Desk) -> Sequence[Model]:
    """Every model, registered ones first."""
    return await desk.models.all()


async def model_called(desk: Desk, name: str) -> Model:
    """The model that answers to `name`. Raises ModelNotFound."""
    return await desk.models.find(name)


async def locked_models(desk: Desk) -> list[str]:
    """The models whose upstream keys the vault cannot open."""
    return [model.name for model in await desk.models.all() if await _is_locked(desk, model)]


async def _is_locked(desk: Desk, model: Model) -> bool:
    sealed = None if model.key_id is None else await desk.store.catalog.key(model.key_id)
    try:
        return sealed is not None and not desk.vault.open(sealed)
    except Unreadable:
        return True


async def register(desk: Desk, model: Model, secret: str | None = None) -> None:
    """Puts a model into the catalog, for every process; its upstream's key is sealed. There is one default at most.

    Raises BadRequest, AddressRefused.
    """
    if (flaw := flaw_of(model)) is not None:
        raise BadRequest(flaw)
    if model.url:
        check_model_url(model.url)
    if model.default:
        await _undefault(desk, model.name)
    if secret:
        key_id = await desk.store.catalog.add_key(None, model.name, desk.vault.seal(secret))
        model = msgspec.structs.replace(model, key_id=key_id)
    await desk.store.catalog.put_model(model)
    desk.models.forget()


async def _undefault(desk: Desk, name: str) -> None:
    for other in await desk.store.catalog.models():
        if other.default and other.name != name:
            await desk.store.catalog.put_model(msgspec.structs.replace(other, default=False))


async def forget(desk: Desk, name: str) -> None:
    """Takes a registered model out of the catalog. Raises ModelNotFound."""
    if not await desk.store.catalog.drop_model(name):
        raise ModelNotFound(f"There is no registered model {name!r}.")
    desk.models.forget()
