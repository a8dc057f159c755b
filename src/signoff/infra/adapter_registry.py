"""Adapters by name, each of which is imported and made when it is first used."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

K = TypeVar("K", bound=str)
V = TypeVar("V")


class AdapterRegistry(Mapping[K, V]):
    """Mapping whose values `make` returns, each once, when it is first asked for.

    Args:
        names: The keys.
        make: Factory of the value of a key.
    """

    def __init__(self, names: Collection[K], make: Callable[[K], V]) -> None:
        self._names = names
        self._make = make
        self._adapters = dict[K, V]()

    def __getitem__(self, name: K) -> V:
        try:
            return self._adapters[name]
        except KeyError:
            if name not in self._names:
                raise
        adapter = self._adapters[name] = self._make(name)
        return adapter

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[K]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
