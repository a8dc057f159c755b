"""Models: which there are, and registering one while everything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from signoff.core.allow_list import check_model_url
from signoff.core.model import Model, key_ids_of, model_fault
from signoff.errors import BadRequest, ModelNotFound
from signoff.infra.vault import Unreadable
from signoff.work.services import Services


class ModelKeys(msgspec.Struct, frozen=True):
    """The keys of a model's upstreams in clear: its own, and those of single endpoints, by their address and name."""

    own: str | None = None
    endpoints: Mapping[tuple[str, str | None], str] = {}


NO_MODEL_KEYS = ModelKeys()


async def all_models(services: Services) -> Sequence[Model]:
    """Every model, registered ones first."""
    return await services.caches.models.all()


async def model_by_name(services: Services, name: str) -> Model:
    """The model that answers to `name`. Raises ModelNotFound."""
    return await services.caches.models.find(name)


async def locked_models(services: Services) -> list[str]:
    """The models whose upstream keys the vault cannot open."""
    return [model.name for model in await services.caches.models.all() if await _is_locked(services, model)]


async def _is_locked(services: Services, model: Model) -> bool:
    sealed = [await services.store.catalog.key(key_id) for key_id in key_ids_of(model)]
    try:
        return not all(services.adapters.vault.open(each) for each in sealed if each is not None)
    except Unreadable:
        return True


async def register_model(
    services: Services,
    model: Model,
    secrets: ModelKeys = NO_MODEL_KEYS,
    *,
    drops_key: bool = False,
    is_new: bool = False,
) -> None:
    """Puts a model into the catalog, for every process; its upstreams' keys are sealed. There is one default at most.

    Without `secrets` it keeps the keys that it had, unless `drops_key`. Raises BadRequest, AddressRefused, Conflict.
    """
    if model.kind not in services.adapters.engines:
        raise BadRequest(f"There is no kind {model.kind!r}; there are {', '.join(sorted(services.adapters.engines))}.")
    if (flaw := model_fault(model)) is not None:
        raise BadRequest(flaw)
    for url in (model.url, *(endpoint.url for endpoint in model.endpoints)):
        if url:
            check_model_url(url)
    sealed = services.adapters.vault.seal(secrets.own) if secrets.own else None
    sealed_at = {place: services.adapters.vault.seal(secret) for place, secret in secrets.endpoints.items() if secret}
    await services.store.catalog.put_model(
        model, sealed=sealed, sealed_at=sealed_at, drops_key=drops_key, is_new=is_new
    )
    services.caches.models.invalidate()


async def unregister_model(services: Services, name: str) -> None:
    """Takes a registered model out of the catalog. Raises ModelNotFound."""
    if not await services.store.catalog.drop_model(name):
        raise ModelNotFound(f"There is no registered model {name!r}.")
    services.caches.models.invalidate()
