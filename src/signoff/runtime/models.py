"""Cache of the registered models, together with the built-in ones."""

from collections.abc import Sequence

from signoff.catalog import Catalog
from signoff.core.model import Model, ModelIndex, version_of
from signoff.errors import ModelNotFound, NoDefaultModel
from signoff.runtime.snapshot import Snapshot


class ModelCache:
    """Models by name. A name that is not cached is looked up in the store before it counts as unknown."""

    def __init__(self, catalog: Catalog, built_in: Sequence[Model]) -> None:
        self._catalog = catalog
        self._built_in = built_in
        self._snapshot = Snapshot(self._read)

    async def find(self, name: str | None) -> Model:
        """Return the model for `name`, or the default model if it is None.

        Raises ModelNotFound, or its subclass NoDefaultModel if `name` is None and no model is the default.
        """
        index = self._snapshot.known
        if index is not None and (cached := _pick(index, name)) is not None:
            return cached
        model = _pick(await self._snapshot.refresh(), name)
        if model is None and name is None:
            raise NoDefaultModel
        if model is None:
            raise ModelNotFound(f"The model {name!r} does not exist. GET /v1/models lists all models.")
        return model

    def has_exact(self, name: str) -> bool:
        """Return True if the cache has a model with exactly that name; unlike `contains`, do not load the models."""
        index = self._snapshot.known
        return index is not None and index.has_exact(name)

    def registered_name(self, name: str) -> str | None:
        """Return the name of the model that answers to `name`, such as `gpt-*`; None if the cache has none."""
        model = None if self._snapshot.known is None else self._snapshot.known.find(name)
        return None if model is None else model.name

    async def contains(self, name: str) -> bool:
        """Return True if there is a model with exactly that name."""
        return (await self._snapshot.get()).has_exact(name)

    async def is_hidden_by_pattern(self, name: str) -> bool:
        """Return True if there is a model for `name` that is not called exactly that, such as `gpt-*`."""
        index = await self._snapshot.get()
        return not index.has_exact(name) and index.find(name) is not None

    async def all(self) -> Sequence[Model]:
        """Return every model, registered ones first."""
        return (await self._snapshot.get()).models

    def may_reach_person(self, model: Model) -> bool:
        """Return True if `model` is a person, or may fall back on one."""
        index = self._snapshot.known
        return index is not None and index.may_reach_person(model)

    def version_of(self, model: Model) -> str:
        """Return a version of the model's definition; see `core.model.version_of`."""
        index = self._snapshot.known
        return version_of(model) if index is None else index.version_of(model)

    def invalidate(self) -> None:
        """Clear the cache."""
        self._snapshot.invalidate()

    async def _read(self) -> ModelIndex:
        registered = await self._catalog.models()
        names = {model.name for model in registered}
        return ModelIndex([*registered, *(model for model in self._built_in if model.name not in names)])


def _pick(index: ModelIndex, name: str | None) -> Model | None:
    return index.default() if name is None else index.find(name)
