"""The library: create, change, share, label and remove prompts and pipelines, all in versions."""

import asyncio
import difflib
import re
from collections.abc import Callable
from typing import Any

import msgspec

from signoff.core.access import Caller
from signoff.core.filters import LibraryFilter, Page
from signoff.core.pipelines.check import MAX_NESTED, Callee, check_calls
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem, LibraryItemKind, Pipeline, Prompt
from signoff.core.pipelines.grammar import calls_of, parse
from signoff.core.pipelines.names import MAX_NAME_LENGTH, is_valid_name, join_names
from signoff.core.pipelines.tree import Call
from signoff.errors import BadRequest, Conflict, Forbidden, LibraryItemNotFound, NameTaken, name_taken
from signoff.work.inference.resolve import may_use_item
from signoff.work.services import Services

MAX_BODY_CHARACTERS = 1024 * 1024
MAX_MESSAGE_CHARACTERS = 1000
MAX_COMPARED_LINES = 2000
MAX_NAMES = 10_000
MAX_CALLERS_LISTED = 10
LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
KINDS: dict[LibraryItemKind, type[Prompt | Pipeline]] = {"prompt": Prompt, "pipeline": Pipeline}


class LibraryDraft(msgspec.Struct, frozen=True, kw_only=True):
    """A new version of a prompt or pipeline, before it is checked."""

    name: str
    """A letter, then letters, digits and `_`; fixed by the first version."""
    body: str
    """The template of a prompt, or the text of a pipeline."""
    model: str | None = None
    """The model of a prompt; None for the default model."""
    message: str = ""
    """A note on the change."""
    label: str | None = PRODUCTION
    """The label that moves to this version; None moves none."""
    shared: bool | None = None
    """True to let every user use the item; None leaves it as it was, or unshared."""
    expected_version: int | None = None
    """The newest version that the author of this one saw; None for any."""


async def create_item(services: Services, caller: Caller, kind: LibraryItemKind, draft: LibraryDraft) -> LibraryItem:
    """Save the first version of a new prompt or pipeline of the caller.

    Raises BadRequest, BadPipeline, ModelNotFound, NameTaken.
    """
    if not is_valid_name(draft.name):
        raise BadRequest(f"`name` must be a letter, then letters, digits and _, at most {MAX_NAME_LENGTH} in all.")
    if await _is_name_taken(services, draft.name):  # first, whatever else is wrong with the draft
        raise name_taken(draft.name)
    item = await _checked_item(services, caller, kind, draft, user_id=caller.user_id, shared=bool(draft.shared))
    return await _save(services, item, draft.label)


async def _is_name_taken(services: Services, name: str) -> bool:
    """Return True if a model, a function, or a prompt or pipeline of whatever user has this name."""
    if any(model.name == name for model in await services.caches.models.all()):
        return True
    if name in await services.caches.functions.registered():
        return True
    return await services.caches.library.find(name, refresh=True) is not None


async def save_version(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, draft: LibraryDraft
) -> LibraryItem:
    """Save a new version of an item of the caller, or for an admin of any.

    Raises LibraryItemNotFound, Forbidden, what `create_item` raises, and VersionConflict unless the newest version is
    `draft.expected_version`.
    """
    old = await _get_changeable(services, caller, kind, key)
    if draft.name != old.name:
        raise BadRequest(f"`name` must be {old.name!r}, as names cannot change (got {draft.name!r}).")
    shared = old.shared if draft.shared is None else draft.shared
    item = await _checked_item(services, caller, kind, draft, user_id=old.user_id, shared=shared)
    return await _save(services, msgspec.structs.replace(item, id=old.id), draft.label, draft.expected_version)


async def check_draft(services: Services, caller: Caller, kind: LibraryItemKind, draft: LibraryDraft) -> LibraryItem:
    """Check a draft as `create_item` or `save_version` does, and return it; nothing is saved.

    An existing item of this name says whether it is shared. Raises BadRequest, BadPipeline, ModelNotFound.
    """
    old = await services.caches.library.find(draft.name) if draft.name else None
    shared = isinstance(old, KINDS[kind]) and old.shared and may_use_item(caller, old)
    return await _checked_item(services, caller, kind, draft, user_id=caller.user_id, shared=shared)


async def get_item(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, at: str | int = PRODUCTION
) -> LibraryItem:
    """Return the item of this name or id, in the version with this label or number.

    Raises LibraryItemNotFound, also for an item of another user that is not shared.
    """
    item = await services.caches.library.find(int(key) if _is_number(key) else key, at, refresh=True)
    if not isinstance(item, KINDS[kind]) or not may_use_item(caller, item):
        version_text = "" if at == PRODUCTION else f" in version {at!r}"
        raise LibraryItemNotFound(f"There is no {kind} {key!r}{version_text}; list them with `GET /api/{kind}s`.")
    return item


async def list_items(services: Services, caller: Caller, library_filter: LibraryFilter) -> Page[LibraryItem]:
    """Return a page of the caller's own and shared items; for an admin, of all items."""
    user_id = None if caller.role == "admin" else caller.user_id
    return await services.store.library.list(msgspec.structs.replace(library_filter, user_id=user_id))


async def list_versions(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, *, before: int | None, limit: int
) -> Page[LibraryItem]:
    """Return a page of versions, newest first: at most `limit` below the number `before`.

    Raises LibraryItemNotFound.
    """
    item = await get_item(services, caller, kind, key)
    return await services.store.library.versions(item.id, before=before, limit=limit)


async def list_dependents(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, *, after: str = "", limit: int = 50
) -> Page[LibraryItem]:
    """Return a page of the pipelines that call the item and that the caller may see. Raises LibraryItemNotFound."""
    item = await get_item(services, caller, kind, key)
    return await list_items(services, caller, LibraryFilter(calls=item.name, after=after, limit=limit))


async def diff_versions(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, old: str | int, new: str | int
) -> str:
    """Return the differences between two versions as a unified diff (`diff -u`).

    Raises LibraryItemNotFound, and BadRequest if a version has too many lines to compare.
    """
    items = [await get_item(services, caller, kind, key, version) for version in (old, new)]
    old_title, new_title = [f"{item.name}, version {item.version}" for item in items]
    old_lines, new_lines = [item.body.splitlines() for item in items]
    if max(len(old_lines), len(new_lines)) > MAX_COMPARED_LINES:
        raise BadRequest(f"Only versions of at most {MAX_COMPARED_LINES} lines can be compared.")
    lines = difflib.unified_diff(old_lines, new_lines, old_title, new_title, lineterm="")
    return await asyncio.to_thread("\n".join, lines)


async def set_label(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, name: str, version: int | None
) -> LibraryItem:
    """Move the label to `version`, or remove it if None. Raises LibraryItemNotFound, Forbidden, BadRequest."""
    item = await _get_changeable(services, caller, kind, key)
    _check_label(name)
    if version is None and name == PRODUCTION:
        raise BadRequest("The label production cannot be removed; move it to another version.")
    if not await services.store.library.label(item.id, name, version):
        missing = f"label {name!r}" if version is None else f"version {version}"
        remedy = f"list its versions with `GET /api/{kind}s/{item.name}/versions`"
        raise LibraryItemNotFound(f"The {kind} {item.name!r} has no {missing}; {remedy}.")
    services.caches.library.invalidate()
    return await get_item(services, caller, kind, key, PRODUCTION if version is None else version)


async def set_shared(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, *, shared: bool
) -> LibraryItem:
    """Share the item with every user, or with none. Raises LibraryItemNotFound, Forbidden, BadPipeline, NameTaken."""
    item = await _get_changeable(services, caller, kind, key)
    if shared:
        await _check_shared_name(services, caller, item.name, item.user_id)
    if shared and isinstance(item, Pipeline):
        await _check_tree(services, caller, item.body, item.tree, name=item.name, shared=True)
    await services.store.library.share(item.id, shared=shared)
    services.caches.library.invalidate()
    return await get_item(services, caller, kind, key)


async def remove_item(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, *, force: bool = False
) -> None:
    """Remove all versions of the item, unless pipelines that the caller may see call it and `force` is False.

    Raises LibraryItemNotFound, Forbidden, Conflict.
    """
    item = await _get_changeable(services, caller, kind, key)
    dependents = await list_dependents(services, caller, kind, key, limit=MAX_CALLERS_LISTED)
    names = [pipeline.name for pipeline in dependents if pipeline.id != item.id]
    if names and not force:
        raise Conflict(f"{item.name!r} is called by {join_names(names)}; use force=true to remove it nevertheless.")
    await services.store.library.drop(item.id)
    services.caches.library.invalidate()


async def callees_of(
    services: Services, tree: Call, may_use: Callable[[LibraryItem], bool], *, name: str | None = None
) -> dict[str, Callee]:
    """Return what the calls of `tree` call, by name, and what the pipelines among them call in turn.

    Names that do not exist, or for which `may_use` returns False, are left out. Raises BadRequest if there are too
    many.

    Args:
        services: The dependencies.
        tree: The outermost call.
        may_use: A check of each prompt and pipeline.
        name: The name of the pipeline itself, which is not looked up.
    """
    callees, waiting = dict[str, Callee](), [tree]
    functions = await services.caches.functions.registered()
    visited = {name}
    for _ in range(MAX_NESTED + 1):
        names = {call.name for each in waiting for call in calls_of(each)} - visited
        waiting = list[Call]()
        for each in sorted(filter(None, names)):
            callee = functions.get(each) or await services.caches.library.find(each)
            if isinstance(callee, Prompt | Pipeline) and not may_use(callee):
                continue
            if callee is not None:
                callees[each] = callee
            if isinstance(callee, Pipeline):
                waiting.append(callee.tree)
        visited |= names
        if len(visited) > MAX_NAMES:
            raise BadRequest(f"A pipeline may call at most {MAX_NAMES} different names.")
    return callees


async def _get_changeable(services: Services, caller: Caller, kind: LibraryItemKind, key: str) -> LibraryItem:
    """Return the item if the caller may change it. Raises LibraryItemNotFound, Forbidden."""
    item = await get_item(services, caller, kind, key)
    if caller.role != "admin" and item.user_id != caller.user_id:
        raise Forbidden(f"Only the owner of {item.name!r} or an admin may change it.")
    return item


async def _checked_item(
    services: Services, caller: Caller, kind: LibraryItemKind, draft: LibraryDraft, *, user_id: int, shared: bool
) -> LibraryItem:
    """Check the draft, and return it as a prompt or pipeline. Raises BadRequest, BadPipeline."""
    _check_texts(draft)
    if shared:
        await _check_shared_name(services, caller, draft.name, user_id)
    fields: dict[str, Any] = {
        "name": draft.name,
        "body": draft.body,
        "user_id": user_id,
        "shared": shared,
        "message": draft.message,
    }
    if kind == "prompt":
        await services.caches.models.find(draft.model)  # raises ModelNotFound
        return Prompt(**fields, model=draft.model)
    tree = parse(draft.body)
    await _check_tree(services, caller, draft.body, tree, name=draft.name, shared=shared)
    return Pipeline(**fields, tree=tree)


async def _check_tree(services: Services, caller: Caller, body: str, tree: Call, *, name: str, shared: bool) -> None:
    """Check the calls of a pipeline. A shared one may call only what is shared, as it must run for every user."""

    def may_use(item: LibraryItem) -> bool:
        return item.shared if shared else may_use_item(caller, item)

    callees = await callees_of(services, tree, may_use, name=name)
    own = Pipeline(name=name, body=body, tree=tree, user_id=caller.user_id)
    check_calls(body, tree, (callees | {name: own}).get, own_name=name)


async def _check_shared_name(services: Services, caller: Caller, name: str, owner_id: int) -> None:
    """Raise NameTaken if others would call the item and not a model whose pattern fits, and no admin owns it."""
    if not await services.caches.models.is_hidden_by_pattern(name):
        return
    is_owner = caller.user_id == owner_id
    if not (caller.role == "admin" if is_owner else await services.caches.callers.is_admin(owner_id)):
        raise NameTaken(f"`name` {name!r} fits a model whose name ends in `*`; use another one, or do not share it.")


def _check_texts(draft: LibraryDraft) -> None:
    if not 0 < len(draft.body) <= MAX_BODY_CHARACTERS:
        raise BadRequest(f"`body` must be 1 to {MAX_BODY_CHARACTERS} characters long (got {len(draft.body)}).")
    if len(draft.message) > MAX_MESSAGE_CHARACTERS:
        raise BadRequest(f"`message` must be at most {MAX_MESSAGE_CHARACTERS} characters (got {len(draft.message)}).")
    if "\0" in draft.body + draft.message:
        raise BadRequest("`body` and `message` must not contain NUL characters.")
    if draft.label is not None:
        _check_label(draft.label)


def _check_label(name: str) -> None:
    if LABEL.fullmatch(name) is None:
        raise BadRequest(f"`label` must be a letter, then at most 63 letters, digits, _, - and dots (got {name!r}).")


async def _save(
    services: Services, item: LibraryItem, label: str | None, expected_version: int | None = None
) -> LibraryItem:
    saved = await services.store.library.put(item, label=label, expected_version=expected_version)
    services.caches.library.invalidate()
    return saved


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 10
