"""Compose: prompts and pipelines are saved, looked at, shared, labelled and forgotten; all of it in versions."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from signoff.core.access import Caller
from signoff.core.pipelines.check import MAX_NESTED, Callee, check
from signoff.core.pipelines.composed import PRODUCTION, Composed, Composition, Pipeline, Prompt
from signoff.core.pipelines.grammar import calls_of, parsed
from signoff.core.pipelines.names import LONGEST_NAME, can_be_called, in_words
from signoff.core.pipelines.tree import Call
from signoff.errors import BadRequest, ComposedNotFound, Conflict, Forbidden, ModelNotFound, NameTaken
from signoff.store import ComposedFilter
from signoff.work.inference.resolve import may_use
from signoff.work.services import Desk

MAX_BODY_CHARACTERS = 1024 * 1024
MAX_MESSAGE_CHARACTERS = 1000
MAX_COMPARED_LINES = 2000
MAX_NAMES = 10_000
USERS_TOLD = 10
LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
KINDS: dict[Composition, type[Prompt | Pipeline]] = {"prompt": Prompt, "pipeline": Pipeline}


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be saved as a new version. `label` moves to it; None moves none. `shared` None: as it was."""

    name: str
    body: str
    model: str | None = None
    message: str = ""
    label: str | None = PRODUCTION
    shared: bool | None = None


async def create(desk: Desk, caller: Caller, kind: Composition, draft: Draft) -> Composed:
    """The first version of a new one, the caller's own. Raises BadRequest, BadPipeline, NameTaken."""
    if not can_be_called(draft.name):
        raise BadRequest(f"A name is a letter, then letters, digits and _, at most {LONGEST_NAME} in all.")
    if any(model.name == draft.name for model in await desk.models.all()):
        raise NameTaken(f"{draft.name!r} is the name of a model.")
    made = await _made(desk, caller, kind, draft, user_id=caller.user_id, shared=bool(draft.shared))
    return await _put(desk, made, draft.label)


async def save(desk: Desk, caller: Caller, kind: Composition, key: str, draft: Draft) -> Composed:
    """A new version of one's own, or as an admin of anybody's. Raises as `create` does, ComposedNotFound, Forbidden."""
    old = await _own(desk, caller, kind, key)
    if draft.name != old.name:
        raise BadRequest(f"{old.name!r} keeps its name: make another one, and remove this one.")
    shared = old.shared if draft.shared is None else draft.shared
    made = await _made(desk, caller, kind, draft, user_id=old.user_id, shared=shared)
    return await _put(desk, msgspec.structs.replace(made, id=old.id), draft.label)


async def look_at(desk: Desk, caller: Caller, kind: Composition, key: str, at: str | int = PRODUCTION) -> Composed:
    """The one of that name or id, in that version. Raises ComposedNotFound, also for what is others' and not shared."""
    found = await desk.compositions.find(int(key) if _is_number(key) else key, at, anew=True)
    if not isinstance(found, KINDS[kind]) or not may_use(caller, found):
        there = "" if at == PRODUCTION else f" in version {at!r}"
        raise ComposedNotFound(f"There is no {kind} {key!r}{there}.")
    return found


async def look_at_each(desk: Desk, caller: Caller, which: ComposedFilter) -> Sequence[Composed]:
    """A page of the caller's own and what is shared; for admins, of all."""
    user_id = None if caller.role == "admin" else caller.user_id
    return await desk.store.compositions.list(msgspec.structs.replace(which, user_id=user_id))


async def versions_of(
    desk: Desk, caller: Caller, kind: Composition, key: str, *, before: int | None, limit: int
) -> Sequence[Composed]:
    """A page of its versions, the newest first. Raises ComposedNotFound."""
    found = await look_at(desk, caller, kind, key)
    return await desk.store.compositions.versions(found.id, before=before, limit=limit)


async def users_of(
    desk: Desk, caller: Caller, kind: Composition, key: str, *, after: str = "", limit: int = 50
) -> Sequence[Composed]:
    """A page of the pipelines that call it, of those that the caller may see. Raises ComposedNotFound."""
    found = await look_at(desk, caller, kind, key)
    return await look_at_each(desk, caller, ComposedFilter(calls=found.name, after=after, limit=limit))


async def difference(desk: Desk, caller: Caller, kind: Composition, key: str, old: str | int, new: str | int) -> str:
    """What has changed between two versions, line by line, as `diff -u` shows it.

    Raises ComposedNotFound; BadRequest where they have too many lines for that.
    """
    one, other = await look_at(desk, caller, kind, key, old), await look_at(desk, caller, kind, key, new)
    before, after = [f"{each.name}, version {each.version}" for each in (one, other)]
    old_lines, new_lines = one.body.splitlines(), other.body.splitlines()
    if max(len(old_lines), len(new_lines)) > MAX_COMPARED_LINES:
        raise BadRequest(f"Only versions of up to {MAX_COMPARED_LINES} lines are compared.")
    lines = difflib.unified_diff(old_lines, new_lines, before, after, lineterm="")
    return await asyncio.to_thread("\n".join, lines)


async def label(desk: Desk, caller: Caller, kind: Composition, key: str, name: str, version: int | None) -> Composed:
    """Moves the label to that version, or with None takes it away. Raises ComposedNotFound, Forbidden, BadRequest."""
    found = await _own(desk, caller, kind, key)
    _check_label(name)
    if version is None and name == PRODUCTION:
        raise BadRequest("The production label moves; it is never taken away.")
    if not await desk.store.compositions.label(found.id, name, version):
        raise ComposedNotFound(f"{found.name!r} has no " + (f"label {name!r}." if version is None else "such version."))
    desk.compositions.forget()
    return await look_at(desk, caller, kind, key, PRODUCTION if version is None else version)


async def share(desk: Desk, caller: Caller, kind: Composition, key: str, *, shared: bool) -> Composed:
    """Everybody may use it, or only its owner. Raises ComposedNotFound, Forbidden, BadPipeline."""
    found = await _own(desk, caller, kind, key)
    if shared and isinstance(found, Pipeline):
        await _check_tree(desk, caller, found.body, found.tree, name=found.name, shared=True)
    await desk.store.compositions.share(found.id, shared=shared)
    desk.compositions.forget()
    return await look_at(desk, caller, kind, key)


async def remove(desk: Desk, caller: Caller, kind: Composition, key: str, *, force: bool = False) -> None:
    """Forgets all versions; not while pipelines that the caller may see call it, unless by `force`.

    Raises ComposedNotFound, Forbidden, Conflict.
    """
    found = await _own(desk, caller, kind, key)
    users = [user.name for user in await users_of(desk, caller, kind, key, limit=USERS_TOLD) if user.id != found.id]
    if users and not force:
        raise Conflict(f"{found.name!r} is called by {in_words(users)}; with force=true it is removed all the same.")
    await desk.store.compositions.drop(found.id)
    desk.compositions.forget()


async def callees_of(
    desk: Desk, tree: Call, may: Callable[[Composed], bool], *, name: str | None = None
) -> dict[str, Callee]:
    """What all calls of `tree` call, and those of the pipelines among them, as far as it exists and `may` be used.

    `name` is the pipeline's own, which needs no look. Raises BadRequest when it is too much.
    """
    known, waiting = dict[str, Callee](), [tree]
    functions = await desk.functions.registered()
    looked = {name}
    for _ in range(MAX_NESTED + 1):
        names = {call.name for each in waiting for call in calls_of(each)} - looked
        waiting = list[Call]()
        for each in sorted(filter(None, names)):
            found = functions.get(each) or await desk.compositions.find(each)
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


async def _own(desk: Desk, caller: Caller, kind: Composition, key: str) -> Composed:
    """What the caller may change. Raises ComposedNotFound, Forbidden."""
    found = await look_at(desk, caller, kind, key)
    if caller.role != "admin" and found.user_id != caller.user_id:
        raise Forbidden("Only its owner or an admin can change it.")
    return found


async def _made(desk: Desk, caller: Caller, kind: Composition, draft: Draft, *, user_id: int, shared: bool) -> Composed:
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
        await _check_model(desk, draft.model)
        return Prompt(**more, model=draft.model)
    tree = parsed(draft.body)
    await _check_tree(desk, caller, draft.body, tree, name=draft.name, shared=shared)
    return Pipeline(**more, tree=tree)


async def _check_tree(desk: Desk, caller: Caller, body: str, tree: Call, *, name: str, shared: bool) -> None:
    """What is shared must run for everybody: it may call only what is shared too."""

    def may(composed: Composed) -> bool:
        return composed.shared if shared else may_use(caller, composed)

    known = await callees_of(desk, tree, may, name=name)
    own = Pipeline(name=name, body=body, tree=tree, user_id=caller.user_id)
    check(body, tree, (known | {name: own}).get, own_name=name)


async def _check_model(desk: Desk, name: str | None) -> None:
    try:
        await desk.models.find(name)
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


async def _put(desk: Desk, composed: Composed, label: str | None) -> Composed:
    put = await desk.store.compositions.put(composed, label=label)
    desk.compositions.forget()
    return put


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 10
