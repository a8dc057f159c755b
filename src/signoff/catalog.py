"""The promise of a catalog, which is a part of the store's: models, their upstreams' keys, their logs; streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from signoff.core.access import UpstreamKey
from signoff.core.log import LogLine
from signoff.core.model import EndpointName, Model
from signoff.core.stream import Stream


class Catalog(Protocol):
    """Registered models, and the sealed keys of upstreams. A change of either is one of the models' version."""

    async def models(self) -> list[Model]: ...
    async def put_model(
        self,
        model: Model,
        *,
        sealed: bytes | None = None,
        sealed_at: Mapping[EndpointName, bytes] = {},
        drops_key: bool = False,
        is_new: bool = False,
    ) -> None:
        """Registers it, in the place of the one that has its name; Conflict if it `is_new` and there is one.

        `sealed` becomes its own key, `sealed_at` those of its endpoints. Without one the key that it had stays, unless
        `drops_key`. A key that was its own and is so no more is forgotten. Where it is the default, no other one is.
        """
        ...

    async def drop_model(self, name: str) -> bool:
        """Forgets it, and its own key."""
        ...

    async def add_key(self, user_id: int, name: str, sealed: bytes, *, is_shared: bool = False) -> int: ...
    async def key(self, key_id: int) -> bytes | None:
        """Its sealed form."""
        ...

    async def known_key(self, key_id: int) -> UpstreamKey | None: ...
    async def keys(self, user_id: int | None, *, after_id: int = 0, limit: int = 50) -> list[UpstreamKey]:
        """A page of the keys that this user may use, None: of all users' keys; oldest first."""
        ...

    async def drop_key(self, key_id: int) -> bool: ...


SealedKind = Literal["key", "job", "stream"]


class SealedSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed secret, and where it stands: an upstream's key, the webhook's own secret that a job carries, or the
    address of a stream's broker.
    """

    kind: SealedKind
    place: str
    sealed: bytes


class Secrets(Protocol):
    """Everything that is sealed, for whoever changes the key that seals."""

    async def page(self, kind: SealedKind, after: str | None, limit: int) -> list[SealedSecret]:
        """Up to `limit` of them behind the place `after`, in the order of their places. Jobs whose end is told without
        a secret of their own are among them, with an empty one.
        """
        ...

    async def replace(self, old: SealedSecret, sealed: bytes) -> bool:
        """Puts `sealed` there; False, and nothing changes, where the old one stands no more."""
        ...


class ModelLogs(Protocol):
    """What models wrote and how they failed, on whichever host; of each the newest lines."""

    async def add(self, lines: Sequence[tuple[str, LogLine]], *, kept: int) -> None:
        """Adds lines, each to the log of a model, of which the `kept` newest stay."""
        ...

    async def read(self, model: str, limit: int) -> list[LogLine]:
        """The newest ones, oldest first."""
        ...

    async def clean(self, model: str) -> None: ...


class Streams(Protocol):
    """Streams that were declared while everything ran, and who listens where only one process may."""

    async def all(self) -> list[Stream]: ...
    async def put(self, stream: Stream) -> None: ...
    async def drop(self, name: str) -> bool: ...
    async def acquire_lead(self, name: str, holder: str, seconds: float) -> bool:
        """Whether `holder` is the one who listens to that stream for so long from now: nobody else does."""
        ...

    async def release_lead(self, name: str, holder: str) -> None:
        """Lets somebody else lead at once."""
        ...
