"""The models that this process knows: a copy of the store's, and those that always exist."""

from __future__ import annotations

from collections.abc import Sequence

from signoff.catalog import Catalog
from signoff.core.model import Model, ModelIndex, version_of
from signoff.errors import ModelNotFound
from signoff.runtime.snapshot import Snapshot


class ModelCache:
    """Models by name. What is not known is looked up in the store before anybody is told that it does not exist."""

    def __init__(self, catalog: Catalog, always: Sequence[Model]) -> None:
        self._catalog = catalog
        self._always = always
        self._listing = Snapshot(self._read)

    async def find(self, name: str | None) -> Model:
        """The model for `name`, or the default one. Raises ModelNotFound."""
        listing = self._listing.known
        if listing is not None and (known := _pick(listing, name)) is not None:
            return known
        found = _pick(await self._listing.refresh(), name)
        if found is None:
            raise ModelNotFound(f"There is no model {name!r}. GET /v1/models lists what there is.")
        return found

    def has_exact(self, name: str) -> bool:
        """Whether a model is called exactly that, as far as is known here without a look at the store."""
        listing = self._listing.known
        return listing is not None and listing.has_exact(name)

    async def all(self) -> Sequence[Model]:
        """Every model, registered ones first."""
        return (await self._listing.get()).models

    def version_of(self, model: Model) -> str:
        """A name for what the model is now; see `core.target.version_of`."""
        listing = self._listing.known
        return version_of(model) if listing is None else listing.version_of(model)

    def invalidate(self) -> None:
        """The copy is out of date."""
        self._listing.invalidate()

    async def _read(self) -> ModelIndex:
        registered = await self._catalog.models()
        names = {model.name for model in registered}
        return ModelIndex([*registered, *(model for model in self._always if model.name not in names)])


def _pick(listing: ModelIndex, name: str | None) -> Model | None:
    return listing.default() if name is None else listing.find(name)
