"""Allow: which limits there are, who sets them, and what anybody may see of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.limits import Counter, Limit, limit_name
from signoff.errors import BadRequest, NotFound
from signoff.work.services import Services

COUNTS = ("requests_per_minute", "tokens_per_minute", "parallel", "tokens_per_day", "tokens_per_month")
COSTS = ("cost_per_day", "cost_per_month")
MOST = 2**53


class LimitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A limit, and what counts of it now; None where there is a meter for each user."""

    limit: Limit
    used: Counter | None


async def list_limits(services: Services, caller: Caller) -> list[LimitStatus]:
    """Every limit, for an admin; for others, those that are for them or their token."""
    limits = await services.store.quotas.limits()
    if caller.role == "admin":
        metered = [(limit, None if limit.who == "each" else limit.name) for limit in limits]
    else:
        metered = [(limit, _counter_of(limit, caller)) for limit in _of(limits, caller)]
    counters = await services.store.quotas.counters([name for _, name in metered if name is not None])
    return [
        LimitStatus(limit=limit, used=None if name is None else counters.get(name, Counter()))
        for limit, name in metered
    ]


async def get_limit(services: Services, caller: Caller, who: str, model: str | None) -> LimitStatus:
    """One limit. Raises Forbidden, NotFound."""
    check_admin(caller)
    name = (await limit_for(services, who, model)).name
    found = next((one for one in await list_limits(services, caller) if one.limit.name == name), None)
    if found is None:
        raise NotFound(f"There is no limit for {name}.")
    return found


async def set_limit(services: Services, caller: Caller, limit: Limit) -> None:
    """Sets it, in the place of the one for the same. Raises Forbidden, BadRequest."""
    check_admin(caller)
    await put_limit(services, limit)


async def remove_limit(services: Services, caller: Caller, who: str, model: str | None) -> None:
    """There is no such limit any more. Raises Forbidden, NotFound, BadRequest."""
    check_admin(caller)
    await delete_limit(services, await limit_for(services, who, model))


async def put_limit(services: Services, limit: Limit) -> None:
    """Sets a limit, which every process knows within a second. Raises BadRequest."""
    if (flaw := _limit_fault(limit)) is not None:
        raise BadRequest(flaw)
    await services.store.quotas.put_limit(limit)
    services.caches.limits.invalidate()


async def delete_limit(services: Services, limit: Limit) -> None:
    """Removes a limit. Raises NotFound."""
    if not await services.store.quotas.drop_limit(limit.name):
        raise NotFound(f"There is no limit for {limit.name}.")
    services.caches.limits.invalidate()


async def all_limits(services: Services) -> Sequence[Limit]:
    """All there are."""
    return await services.store.quotas.limits()


async def limit_for(services: Services, who: str, model: str | None) -> Limit:
    """A limit for `all`, `each`, `user:EMAIL` or `token:ID`, which limits nothing yet. Raises BadRequest, NotFound."""
    kind, _, whom = who.partition(":")
    match kind, whom:
        case (("all" | "each"), ""):
            return Limit(who=kind, model=model)
        case "user", email if email:
            user = await services.store.people.user(email)
            if user is None:
                raise NotFound(f"There is no user {email!r}.")
            return Limit(who="user", id=user.id, email=user.email, model=model)
        case "token", number if number.isascii() and number.isdigit() and len(number) < 10:
            return Limit(who="token", id=int(number), model=model)
        case _:
            raise BadRequest(f"{who!r} is nobody: there are all, each, user:EMAIL and token:ID.")


def limit_subject(limit: Limit) -> str:
    """The same in words: `all`, `each`, `user:EMAIL` or `token:ID`."""
    return {"user": f"user:{limit.email}", "token": f"token:{limit.id}"}.get(limit.who, limit.who)


def _limit_fault(limit: Limit) -> str | None:
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


def _counter_of(limit: Limit, caller: Caller) -> str:
    return limit.name if limit.who == "token" else limit_name("user", caller.user_id, limit.model)
