"""Allow: which limits there are, who sets them, and what anybody may see of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.limits import Limit, Meter, named
from signoff.errors import BadRequest, NotFound
from signoff.work.services import Desk

COUNTS = ("requests_per_minute", "tokens_per_minute", "parallel", "tokens_per_day", "tokens_per_month")
COSTS = ("cost_per_day", "cost_per_month")
MOST = 2**53


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """A limit, and what counts of it now; None where there is a meter for each user."""

    limit: Limit
    used: Meter | None


async def look_at_limits(desk: Desk, caller: Caller) -> list[Allowed]:
    """Every limit, for an admin; for others, those that are for them or their token."""
    limits = await desk.store.quotas.limits()
    if caller.role == "admin":
        metered = [(limit, None if limit.who == "each" else limit.name) for limit in limits]
    else:
        metered = [(limit, _meter_of(limit, caller)) for limit in _of(limits, caller)]
    meters = await desk.store.quotas.meters([name for _, name in metered if name is not None])
    return [Allowed(limit=limit, used=None if name is None else meters.get(name, Meter())) for limit, name in metered]


async def look_at_limit(desk: Desk, caller: Caller, who: str, model: str | None) -> Allowed:
    """One limit. Raises Forbidden, NotFound."""
    check_admin(caller)
    name = (await limit_for(desk, who, model)).name
    found = next((one for one in await look_at_limits(desk, caller) if one.limit.name == name), None)
    if found is None:
        raise NotFound(f"There is no limit for {name}.")
    return found


async def set_limit(desk: Desk, caller: Caller, limit: Limit) -> None:
    """Sets it, in the place of the one for the same. Raises Forbidden, BadRequest."""
    check_admin(caller)
    await allow(desk, limit)


async def remove_limit(desk: Desk, caller: Caller, who: str, model: str | None) -> None:
    """There is no such limit any more. Raises Forbidden, NotFound, BadRequest."""
    check_admin(caller)
    await disallow(desk, await limit_for(desk, who, model))


async def allow(desk: Desk, limit: Limit) -> None:
    """Sets a limit, which every process knows within a second. Raises BadRequest."""
    if (flaw := _flaw_of(limit)) is not None:
        raise BadRequest(flaw)
    await desk.store.quotas.put_limit(limit)
    desk.limits.forget()


async def disallow(desk: Desk, limit: Limit) -> None:
    """Removes a limit. Raises NotFound."""
    if not await desk.store.quotas.drop_limit(limit.name):
        raise NotFound(f"There is no limit for {limit.name}.")
    desk.limits.forget()


async def every_limit(desk: Desk) -> Sequence[Limit]:
    """All there are."""
    return await desk.store.quotas.limits()


async def limit_for(desk: Desk, who: str, model: str | None) -> Limit:
    """A limit for `all`, `each`, `user:EMAIL` or `token:ID`, which limits nothing yet. Raises BadRequest, NotFound."""
    kind, _, whom = who.partition(":")
    match kind, whom:
        case (("all" | "each"), ""):
            return Limit(who=kind, model=model)
        case "user", email if email:
            user = await desk.store.people.user(email)
            if user is None:
                raise NotFound(f"There is no user {email!r}.")
            return Limit(who="user", id=user.id, email=user.email, model=model)
        case "token", number if number.isascii() and number.isdigit() and len(number) < 10:
            return Limit(who="token", id=int(number), model=model)
        case _:
            raise BadRequest(f"{who!r} is nobody: there are all, each, user:EMAIL and token:ID.")


def whose(limit: Limit) -> str:
    """The same in words: `all`, `each`, `user:EMAIL` or `token:ID`."""
    return {"user": f"user:{limit.email}", "token": f"token:{limit.id}"}.get(limit.who, limit.who)


def _flaw_of(limit: Limit) -> str | None:
    """Why this limits nothing, or cannot be kept."""
    told = msgspec.structs.asdict(limit)
    numbers = [told[name] for name in (*COUNTS, *COSTS) if told[name] is not None]
    if not numbers:
        return f"What is limited? There are {', '.join((*COUNTS, *COSTS))}."
    if any(not 0 <= number <= MOST for number in numbers):
        return "A limit is 0 or more, and not astronomical."
    return None


def _of(limits: Iterable[Limit], caller: Caller) -> list[Limit]:
    """Those that are for this caller or their token: a user's own replaces the one for each user."""
    own = [limit for limit in limits if (limit.who, limit.id) in {("user", caller.user_id), ("token", caller.token_id)}]
    models = {limit.model for limit in own if limit.who == "user"}
    return [*own, *(limit for limit in limits if limit.who == "each" and limit.model not in models)]


def _meter_of(limit: Limit, caller: Caller) -> str:
    return limit.name if limit.who == "token" else named("user", caller.user_id, limit.model)
