"""The registry of models: list, register and remove them at run time."""

from collections.abc import Mapping, Sequence

import msgspec

from signoff.core.allow_list import check_model_url
from signoff.core.choices import choice_of
from signoff.core.model import PERSON, Model, key_ids_of, model_fault
from signoff.errors import BadRequest, ModelNotFound, NoDefaultModel
from signoff.infra.vault import Unreadable
from signoff.work.services import Services


class ModelKeys(msgspec.Struct, frozen=True):
    """Keys of a model's upstreams, as plain text."""

    own: str | None = None
    """The key of the model itself."""
    endpoints: Mapping[tuple[str, str | None], str] = {}
    """Keys of single endpoints, by their URL and upstream model."""


NO_MODEL_KEYS = ModelKeys()


async def all_models(services: Services) -> Sequence[Model]:
    """Return every model, registered ones first."""
    return await services.caches.models.all()


async def model_by_name(services: Services, name: str) -> Model:
    """Return the model for `name`. Raises ModelNotFound."""
    return await services.caches.models.find(name)


async def default_model(services: Services) -> Model | None:
    """Return the model for requests that name none; None if there is none."""
    try:
        return await services.caches.models.find(None)
    except NoDefaultModel:
        return None


async def locked_models(services: Services) -> list[str]:
    """Return the names of the models whose upstream keys cannot be decrypted."""
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
    expected_digest: str | None = None,
) -> None:
    """Put a model into the catalog, for every process. A new default model replaces the old default.

    Args:
        services: The dependencies.
        model: The model; one of the same name is replaced.
        secrets: Keys of its upstreams, stored encrypted. Without them the model keeps its keys.
        drops_key: Remove the model's own key if there is no new one.
        is_new: Raise NameTaken if there is a model of this name.
        expected_digest: Raise VersionConflict if the model of this name has another `model_digest`.

    Raises:
        BadRequest: a field is invalid.
        AddressRefused: a URL is not allowed.
        NameTaken: `is_new`, and the name is taken.
        VersionConflict: the stored model has another digest than `expected_digest`.
    """
    kinds = {*services.adapters.engines, PERSON}
    if (kind := choice_of(model.kind, kinds)) is None:
        raise BadRequest(f"`kind` must be one of {', '.join(sorted(kinds))} (got {model.kind!r}).")
    model = msgspec.structs.replace(model, kind=kind)
    if (fault := model_fault(model)) is not None:
        raise BadRequest(fault)
    if model.kind == PERSON:
        model = msgspec.structs.replace(model, review="always")
    for url in (model.url, *(endpoint.url for endpoint in model.endpoints)):
        if url:
            check_model_url(url)
    sealed = services.adapters.vault.seal(secrets.own) if secrets.own else None
    sealed_at = {where: services.adapters.vault.seal(secret) for where, secret in secrets.endpoints.items() if secret}
    await services.store.catalog.put_model(
        model,
        sealed=sealed,
        sealed_at=sealed_at,
        drops_key=drops_key,
        is_new=is_new,
        expected_digest=expected_digest,
    )
    services.caches.models.invalidate()


async def mark_default(services: Services, name: str) -> None:
    """Make a registered model the default one, and change nothing else of it. Raises ModelNotFound, BadRequest."""
    model = next((each for each in await services.store.catalog.models() if each.name == name), None)
    if model is None:
        raise _not_registered(name)
    await register_model(services, msgspec.structs.replace(model, default=True))


async def unregister_model(services: Services, name: str) -> None:
    """Remove a registered model from the catalog. Raises ModelNotFound."""
    if not await services.store.catalog.drop_model(name):
        raise _not_registered(name)
    services.caches.models.invalidate()


def _not_registered(name: str) -> ModelNotFound:
    return ModelNotFound(f"There is no registered model {name!r}; list all models with `GET /api/models`.")
