"""Interfaces of the store for configuration: models and upstream keys, prompts and pipelines, model logs, and streams.

Sealed secrets are here too, for the rotation of the encryption key.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from signoff.core.access import UpstreamKey
from signoff.core.filters import LibraryFilter, Page
from signoff.core.job import Job
from signoff.core.log import LogLine
from signoff.core.model import EndpointName, Model
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem
from signoff.core.pipelines.function import Function
from signoff.core.reviews.policy import PolicyVersion
from signoff.core.reviews.rules import ReviewPolicy
from signoff.core.stream import Stream


class Catalog(Protocol):
    """Registered models, and the sealed API keys of upstreams.

    A key belongs to a user, or to the model that it was registered with. Each change of a model or of a key increments
    the version of the topic `models` (see `Store.versions`).
    """

    async def models(self) -> list[Model]:
        """Return all registered models, ordered by name."""
        ...

    async def put_model(
        self,
        model: Model,
        *,
        sealed: bytes | None = None,
        sealed_at: Mapping[EndpointName, bytes] = {},
        drops_key: bool = False,
        is_new: bool = False,
        expected_digest: str | None = None,
    ) -> None:
        """Register `model`; replace the one that has the same name, in one transaction.

        The stored model keeps the keys of the model that it replaces: its own, and those of endpoints that both have.
        Keys of the replaced model that are not used any more, and that no user owns, are deleted. If `model.default` is
        set, no other model is the default any more.

        Args:
            model: The model. Its `key_id` and those of its endpoints are replaced as described here.
            sealed: The model's own new key, sealed.
            sealed_at: New keys of endpoints, sealed.
            drops_key: Forget all keys of the replaced model, except for those that `sealed` and `sealed_at` set.
            is_new: Do not replace an existing model.
            expected_digest: The `model_digest` of the model to replace; None replaces whatever is stored.

        Raises:
            NameTaken: `is_new` is set, and a model with this name exists.
            VersionConflict: the stored model has another digest than `expected_digest`, or there is none.
        """
        ...

    async def drop_model(self, name: str) -> bool:
        """Delete a model and the keys that belong to it. Return False if there is no such model."""
        ...

    async def add_key(self, user_id: int, name: str, sealed: bytes, *, is_shared: bool = False) -> int:
        """Store a sealed key of a user, and return its id, which no key had before. A shared key serves all users.

        Raises Conflict if the user would have more than `check_key_count` allows.
        """
        ...

    async def key(self, key_id: int) -> bytes | None:
        """Return the sealed key, or None if there is none with this id."""
        ...

    async def known_key(self, key_id: int) -> UpstreamKey | None:
        """Return the description of a key, which does not contain its value; None if there is none with this id."""
        ...

    async def keys(self, user_id: int | None, *, after_id: int = 0, limit: int = 50) -> list[UpstreamKey]:
        """Return a page of the keys that this user may use: their own, and shared ones; ordered by id.

        With a `user_id` of None, return keys of all users. Keys that belong to models are never included. `after_id` is
        the last id of the page before.
        """
        ...

    async def drop_key(self, key_id: int) -> bool:
        """Delete a key. Return False if there is none with this id."""
        ...


SealedKind = Literal["key", "job", "batch", "review_queue", "stream", "receipt_key"]


class SealedSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed secret, and the place where it is stored."""

    kind: SealedKind
    """`key` for an upstream's API key, `job`, `batch` or `review_queue` for a webhook, `stream` for a broker's address.

    `receipt_key` for the private key that signs receipts.
    """

    id: str
    """The id of the key, job or batch, the name of the queue or stream, or the number of the key of receipts."""

    sealed: bytes
    """The secret, sealed by the vault; empty for a job or a queue without one of its own."""

    clear_url: str = ""
    """The URL of a job's webhook that an earlier version stored in clear; empty for all others."""


class Secrets(Protocol):
    """All sealed secrets, for the rotation of the key that seals them."""

    async def page(self, kind: SealedKind, after: str | None, limit: int) -> list[SealedSecret]:
        """Return up to `limit` secrets of a kind, ordered by place; start after the place `after`, None for the first.

        An empty list means that there are no more. Jobs that are delivered without a secret of their own are included,
        with an empty one, as are queues without a webhook; jobs that are delivered to no address are not.
        """
        ...

    async def replace(self, old: SealedSecret, sealed: bytes) -> bool:
        """Store `sealed` in the place of `old` and of its URL in clear.

        Return False, and change nothing, if `old` is not there any more.
        """
        ...

    async def key_fingerprints(self) -> set[str]:
        """Return the fingerprints of the keys that may have encrypted secrets of this database."""
        ...

    async def add_key_fingerprint(self, fingerprint: str, *, drops_others: bool = False) -> None:
        """Add the fingerprint of a key, and delete all others if `drops_others`."""
        ...


class ModelLogs(Protocol):
    """The newest log lines of each model: what it wrote, and how it failed, on all hosts."""

    async def add(self, lines: Sequence[tuple[str, LogLine]], *, max_lines: int) -> None:
        """Append lines, each with the name of its model. Keep the newest `max_lines` lines of these models."""
        ...

    async def read(self, model: str, limit: int) -> list[LogLine]:
        """Return the newest `limit` lines of a model, oldest first."""
        ...

    async def clean(self, model: str) -> None:
        """Delete all lines of a model."""
        ...


class Streams(Protocol):
    """Streams that were declared at run time, and the leads of those that only one process may listen to.

    `put` and `drop` increment the version of the topic `streams` (see `Store.versions`).
    """

    async def all(self) -> list[Stream]:
        """Return all declared streams, ordered by name."""
        ...

    async def put(self, stream: Stream, *, is_new: bool = False) -> None:
        """Declare a stream; replace the one that has the same name. Raises NameTaken if there is one, and `is_new`."""
        ...

    async def drop(self, name: str) -> bool:
        """Delete a stream. Return False if there is no such stream."""
        ...

    async def acquire_lead(self, name: str, holder: str, seconds: float) -> bool:
        """Acquire or renew the lead of a stream for `seconds` from now, by the store's clock.

        Return True if `holder` has the lead now; then no other holder can acquire it until it ends or is released.
        `holder` is a name that only one process uses.
        """
        ...

    async def release_lead(self, name: str, holder: str) -> None:
        """Release the lead if `holder` has it, so that another process can acquire it at once."""
        ...


class SyncResult(msgspec.Struct, frozen=True):
    """The names of functions that a sync has changed."""

    created: tuple[str, ...]
    """Functions that are registered now and were not before."""

    deleted: tuple[str, ...]
    """Functions that are not registered any more."""

    conflicts: tuple[str, ...] = ()
    """Functions that were not registered, because a prompt or a pipeline has their name."""


class Library(Protocol):
    """Prompts and pipelines, in numbered versions that have labels; and the functions that are registered.

    A name belongs to one prompt, pipeline or function of the whole deployment. A change of a prompt or a pipeline
    increments the version of the topic `compositions`, a sync that of `functions` (see `Store.versions`).
    """

    async def put(
        self, item: LibraryItem, *, label: str | None = PRODUCTION, expected_version: int | None = None
    ) -> LibraryItem:
        """Add a version and return it with its number, its labels and its time.

        An `item.id` of 0 creates a new item, whose first version is 1; any other id adds a version to that item.
        `label` moves to the new version; None moves no label. A first version gets the label `production` too.
        `item.shared` applies to all versions. `expected_version` is the number of the newest version before this one;
        None adds the version to whatever is stored.

        Raises:
            VersionConflict: The newest version of an existing item is another than `expected_version`.
            NameTaken: A new item has the name of an existing prompt, pipeline or function.
            LibraryItemNotFound: There is no item with this id and kind.
            Conflict: The user would have more than `check_library_size` allows.
        """
        ...

    async def get(self, key: str | int, at: str | int = PRODUCTION) -> LibraryItem | None:
        """Return one version of an item, or None. `key` is its name or its id, `at` a label or a version number."""
        ...

    async def list(self, filters: LibraryFilter) -> Page[LibraryItem]:
        """Return a page of items, each in its production version."""
        ...

    async def versions(self, item_id: int, *, before: int | None = None, limit: int = 50) -> Page[LibraryItem]:
        """Return up to `limit` versions of an item, the newest first; only those with a number less than `before`.

        The page ends with MAX_PAGE_BYTES of texts.
        """
        ...

    async def label(self, item_id: int, label: str, version: int | None) -> bool:
        """Move a label to a version, or remove it if `version` is None.

        Return False, and change nothing, if there is no such version, or no such label to remove.
        """
        ...

    async def share(self, item_id: int, *, shared: bool) -> bool:
        """Share an item with all users, or stop to share it. Return False if there is no such item."""
        ...

    async def drop(self, item_id: int) -> bool:
        """Delete an item with all its versions. Return False if there is no such item."""
        ...

    async def functions(self) -> Sequence[Function]:
        """Return all registered functions, ordered by name."""
        ...

    async def sync(self, functions: Sequence[Function], unread: Sequence[str] = ()) -> SyncResult:
        """Register `functions`, replace those that have changed, and delete all others.

        Functions of the modules in `unread`, whose source could not be read, are not deleted.
        """
        ...


class Policies(Protocol):
    """Named review policies, in numbered versions, which stay when the policy is deleted.

    `put` and `drop` increment the version of the topic `policies` (see `Store.versions`).
    """

    async def put(self, policy: ReviewPolicy, *, expected_version: int | None = None) -> ReviewPolicy:
        """Add a version of the policy `policy.name`, which applies from now on; return it with its number and time.

        `expected_version` is the number of the version that applied before, 0 for none; None replaces whatever applies.

        Raises:
            VersionConflict: another version than `expected_version` applies.
            Conflict: another policy has its target, or there would be more than MAX_POLICIES.
        """
        ...

    async def get(self, name: str, version: int | None = None) -> ReviewPolicy | None:
        """Return a version, also of a deleted policy; by default the one that applies. None if there is none."""
        ...

    async def current(self) -> list[PolicyVersion]:
        """Return the versions that apply, ordered by name."""
        ...

    async def page(self, *, after: str = "", limit: int = 50) -> list[ReviewPolicy]:
        """Return a page of the versions that apply, ordered by name; `after` is the last name of the page before."""
        ...

    async def versions(self, name: str, *, before: int | None = None, limit: int = 50) -> list[ReviewPolicy]:
        """Return up to `limit` versions of a policy, the newest first; only those with a number less than `before`."""
        ...

    async def drop(self, name: str) -> bool:
        """Delete a policy, so that it applies to no further requests. Return False if there is no such policy."""
        ...


class UpstreamObjects(Protocol):
    """Objects that upstreams store, such as responses and conversations: who created them, and which are held."""

    async def creators(self, object_ids: Sequence[str]) -> dict[str, Job]:
        """Return the first job that created each object, as the object of its answer or as a part of it.

        Objects that no job has created, or whose job was deleted, are left out. There may be any number of ids.
        """
        ...

    async def held(self, object_ids: Sequence[str]) -> set[str]:
        """Return those of `object_ids` that are marked by `hold`."""
        ...

    async def hold(self, object_ids: Sequence[str]) -> None:
        """Mark objects for ever: a job whose answer may be held is about to add to them."""
        ...
