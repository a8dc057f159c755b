"""Models: which there are, and registering one while everything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from signoff.core.allow_list import check_model_url
from signoff.core.model import Model, flaw_of, key_ids_of
from signoff.errors import BadRequest, ModelNotFound
from signoff.infra.vault import Unreadable
from signoff.work.services import Desk


class Secrets(msgspec.Struct, frozen=True):
    """The keys of a model's upstreams in clear: its own, and those of single endpoints, by their address and name."""

    own: str | None = None
    endpoints: Mapping[tuple[str, str | None], str] = {}


NO_SECRETS = Secrets()


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
    sealed = [await desk.store.catalog.key(key_id) for key_id in key_ids_of(model)]
    try:
        return not all(desk.vault.open(each) for each in sealed if each is not None)
    except Unreadable:
        return True


async def register(
    desk: Desk, model: Model, secrets: Secrets = NO_SECRETS, *, drops_key: bool = False, is_new: bool = False
) -> None:
    """Puts a model into the catalog, for every process; its upstreams' keys are sealed. There is one default at most.

    Without `secrets` it keeps the keys that it had, unless `drops_key`. Raises BadRequest, AddressRefused, Conflict.
    """
    if model.kind not in desk.engines:
        raise BadRequest(f"There is no kind {model.kind!r}; there are {', '.join(sorted(desk.engines))}.")
    if (flaw := flaw_of(model)) is not None:
        raise BadRequest(flaw)
    for url in (model.url, *(endpoint.url for endpoint in model.endpoints)):
        if url:
            check_model_url(url)
    sealed = desk.vault.seal(secrets.own) if secrets.own else None
    sealed_at = {place: desk.vault.seal(secret) for place, secret in secrets.endpoints.items() if secret}
    await desk.store.catalog.put_model(model, sealed=sealed, sealed_at=sealed_at, drops_key=drops_key, is_new=is_new)
    desk.models.forget()


async def forget(desk: Desk, name: str) -> None:
    """Takes a registered model out of the catalog. Raises ModelNotFound."""
    if not await desk.store.catalog.drop_model(name):
        raise ModelNotFound(f"There is no registered model {name!r}.")
    desk.models.forget()
