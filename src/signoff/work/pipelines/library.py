"""Compose: prompts and pipelines are saved, looked at, shared, labelled and forgotten; all of it in versions."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from signoff.core.access import Caller
from signoff.core.filters import LibraryFilter
from signoff.core.pipelines.check import MAX_NESTED, Callee, check_calls
from signoff.core.pipelines.composed import PRODUCTION, LibraryItem, LibraryItemKind, Pipeline, Prompt
from signoff.core.pipelines.grammar import calls_of, parse
from signoff.core.pipelines.names import MAX_NAME_LENGTH, is_valid_name, join_names
from signoff.core.pipelines.tree import Call
from signoff.errors import BadRequest, Conflict, Forbidden, LibraryItemNotFound, ModelNotFound, NameTaken
from signoff.work.inference.resolve import may_use_item
from signoff.work.services import Services

MAX_BODY_CHARACTERS = 1024 * 1024
MAX_MESSAGE_CHARACTERS = 1000
MAX_COMPARED_LINES = 2000
MAX_NAMES = 10_000
USERS_TOLD = 10
LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
KINDS: dict[LibraryItemKind, type[Prompt | Pipeline]] = {"prompt": Prompt, "pipeline": Pipeline}


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be saved as a new version. `label` moves to it; None moves none. `shared` None: as it was."""

    name: str
    body: str
    model: str | None = None
    message: str = ""
    label: str | None = PRODUCTION
    shared: bool | None = None


async def create_item(services: Services, caller: Caller, kind: LibraryItemKind, draft: Draft) -> LibraryItem:
    """The first version of a new one, the caller's own. Raises BadRequest, BadPipeline, NameTaken."""
    if not is_valid_name(draft.name):
        raise BadRequest(f"A name is a letter, then letters, digits and _, at most {MAX_NAME_LENGTH} in all.")
    if any(model.name == draft.name for model in await services.caches.models.all()):
        raise NameTaken(f"{draft.name!r} is the name of a model.")
    made = await _made(services, caller, kind, draft, user_id=caller.user_id, shared=bool(draft.shared))
    return await _put(services, made, draft.label)


async def save_version(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, draft: Draft
) -> LibraryItem:
    """A new version of one's own, or as an admin of anybody's. Raises as `create` does, ComposedNotFound, Forbidden."""
    old = await _own(services, caller, kind, key)
    if draft.name != old.name:
        raise BadRequest(f"{old.name!r} keeps its name: make another one, and remove this one.")
    shared = old.shared if draft.shared is None else draft.shared
    made = await _made(services, caller, kind, draft, user_id=old.user_id, shared=shared)
    return await _put(services, msgspec.structs.replace(made, id=old.id), draft.label)


async def get_item(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, at: str | int = PRODUCTION
) -> LibraryItem:
    """The one of that name or id, in that version. Raises ComposedNotFound, also for what is others' and not shared."""
    found = await services.caches.library.find(int(key) if _is_number(key) else key, at, refresh=True)
    if not isinstance(found, KINDS[kind]) or not may_use_item(caller, found):
        there = "" if at == PRODUCTION else f" in version {at!r}"
        raise LibraryItemNotFound(f"There is no {kind} {key!r}{there}.")
    return found


async def list_items(services: Services, caller: Caller, which: LibraryFilter) -> Sequence[LibraryItem]:
    """A page of the caller's own and what is shared; for admins, of all."""
    user_id = None if caller.role == "admin" else caller.user_id
    return await services.store.library.list(msgspec.structs.replace(which, user_id=user_id))


async def list_versions(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, *, before: int | None, limit: int
) -> Sequence[LibraryItem]:
    """A page of its versions, the newest first. Raises ComposedNotFound."""
    found = await get_item(services, caller, kind, key)
    return await services.store.library.versions(found.id, before=before, limit=limit)


async def list_dependents(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, *, after: str = "", limit: int = 50
) -> Sequence[LibraryItem]:
    """A page of the pipelines that call it, of those that the caller may see. Raises ComposedNotFound."""
    found = await get_item(services, caller, kind, key)
    return await list_items(services, caller, LibraryFilter(calls=found.name, after=after, limit=limit))


async def diff_versions(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, old: str | int, new: str | int
) -> str:
    """What has changed between two versions, line by line, as `diff -u` shows it.

    Raises ComposedNotFound; BadRequest where they have too many lines for that.
    """
    one, other = await get_item(services, caller, kind, key, old), await get_item(services, caller, kind, key, new)
    before, after = [f"{each.name}, version {each.version}" for each in (one, other)]
    old_lines, new_lines = one.body.splitlines(), other.body.splitlines()
    if max(len(old_lines), len(new_lines)) > MAX_COMPARED_LINES:
        raise BadRequest(f"Only versions of up to {MAX_COMPARED_LINES} lines are compared.")
    lines = difflib.unified_diff(old_lines, new_lines, before, after, lineterm="")
    return await asyncio.to_thread("\n".join, lines)


async def set_label(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, name: str, version: int | None
) -> LibraryItem:
    """Moves the label to that version, or with None takes it away. Raises ComposedNotFound, Forbidden, BadRequest."""
    found = await _own(services, caller, kind, key)
    _check_label(name)
    if version is None and name == PRODUCTION:
        raise BadRequest("The production label moves; it is never taken away.")
    if not await services.store.library.label(found.id, name, version):
        raise LibraryItemNotFound(
            f"{found.name!r} has no " + (f"label {name!r}." if version is None else "such version.")
        )
    services.caches.library.invalidate()
    return await get_item(services, caller, kind, key, PRODUCTION if version is None else version)


async def set_shared(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, *, shared: bool
) -> LibraryItem:
    """Everybody may use it, or only its owner. Raises ComposedNotFound, Forbidden, BadPipeline."""
    found = await _own(services, caller, kind, key)
    if shared and isinstance(found, Pipeline):
        await _check_tree(services, caller, found.body, found.tree, name=found.name, shared=True)
    await services.store.library.share(found.id, shared=shared)
    services.caches.library.invalidate()
    return await get_item(services, caller, kind, key)


async def remove_item(
    services: Services, caller: Caller, kind: LibraryItemKind, key: str, *, force: bool = False
) -> None:
    """Forgets all versions; not while pipelines that the caller may see call it, unless by `force`.

    Raises ComposedNotFound, Forbidden, Conflict.
    """
    found = await _own(services, caller, kind, key)
    users = [
        user.name
        for user in await list_dependents(services, caller, kind, key, limit=USERS_TOLD)
        if user.id != found.id
    ]
    if users and not force:
        raise Conflict(f"{found.name!r} is called by {join_names(users)}; with force=true it is removed all the same.")
    await services.store.library.drop(found.id)
    services.caches.library.invalidate()


async def callees_of(
    services: Services, tree: Call, may: Callable[[LibraryItem], bool], *, name: str | None = None
) -> dict[str, Callee]:
    """What all calls of `tree` call, and those of the pipelines among them, as far as it exists and `may` be used.

    `name` is the pipeline's own, which needs no look. Raises BadRequest when it is too much.
    """
    known, waiting = dict[str, Callee](), [tree]
    functions = await services.caches.functions.registered()
    looked = {name}
    for _ in range(MAX_NESTED + 1):
        names = {call.name for each in waiting for call in calls_of(each)} - looked
        waiting = list[Call]()
        for each in sorted(filter(None, names)):
            found = functions.get(each) or await services.caches.library.find(each)
            if isinstance(found, Prompt | Pipeline) and not may(found):
                continue
            if found is not None:
                known[each] = found
            if isinstance(found, Pipeline):
                waiting.append(found.tree)
        looked |= names
        if len(looked) > MAX_NAMES:
            raise BadRequest(f"This calls more than {MAX_NAMES} different things.")
    return known


async def _own(services: Services, caller: Caller, kind: LibraryItemKind, key: str) -> LibraryItem:
    """What the caller may change. Raises ComposedNotFound, Forbidden."""
    found = await get_item(services, caller, kind, key)
    if caller.role != "admin" and found.user_id != caller.user_id:
        raise Forbidden("Only its owner or an admin can change it.")
    return found


async def _made(
    services: Services, caller: Caller, kind: LibraryItemKind, draft: Draft, *, user_id: int, shared: bool
) -> LibraryItem:
    """The draft as what it is to be, checked. Raises BadRequest, BadPipeline."""
    _check_texts(draft)
    more: dict[str, Any] = {
        "name": draft.name,
        "body": draft.body,
        "user_id": user_id,
        "shared": shared,
        "message": draft.message,
    }
    if kind == "prompt":
        await _check_model(services, draft.model)
        return Prompt(**more, model=draft.model)
    tree = parse(draft.body)
    await _check_tree(services, caller, draft.body, tree, name=draft.name, shared=shared)
    return Pipeline(**more, tree=tree)


async def _check_tree(services: Services, caller: Caller, body: str, tree: Call, *, name: str, shared: bool) -> None:
    """What is shared must run for everybody: it may call only what is shared too."""

    def may(composed: LibraryItem) -> bool:
        return composed.shared if shared else may_use_item(caller, composed)

    known = await callees_of(services, tree, may, name=name)
    own = Pipeline(name=name, body=body, tree=tree, user_id=caller.user_id)
    check_calls(body, tree, (known | {name: own}).get, own_name=name)


async def _check_model(services: Services, name: str | None) -> None:
    try:
        await services.caches.models.find(name)
    except ModelNotFound as error:
        raise BadRequest(error.message) from None


def _check_texts(draft: Draft) -> None:
    if not 0 < len(draft.body) <= MAX_BODY_CHARACTERS:
        raise BadRequest(f"A body has 1 to {MAX_BODY_CHARACTERS} characters.")
    if len(draft.message) > MAX_MESSAGE_CHARACTERS:
        raise BadRequest(f"A message has at most {MAX_MESSAGE_CHARACTERS} characters.")
    if "\0" in draft.body + draft.message:
        raise BadRequest("A text has no zero bytes.")
    if draft.label is not None:
        _check_label(draft.label)


def _check_label(name: str) -> None:
    if LABEL.fullmatch(name) is None:
        raise BadRequest("A label is a letter, then letters, digits, _, - and dots, at most 64 in all.")


async def _put(services: Services, composed: LibraryItem, label: str | None) -> LibraryItem:
    put = await services.store.library.put(composed, label=label)
    services.caches.library.invalidate()
    return put


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 10
