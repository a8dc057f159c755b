"""Administration of limits: list, set and remove them."""

from collections.abc import Iterable, Sequence

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.counters import Counter
from signoff.core.limits import Limit, limit_name
from signoff.core.refusals import RefusalCount
from signoff.core.times import DAY_US
from signoff.errors import BadRequest, NotFound
from signoff.work.admin.people import user_with_email
from signoff.work.services import Services

COUNTS = ("requests_per_minute", "tokens_per_minute", "parallel", "tokens_per_day", "tokens_per_month")
COSTS = ("cost_per_day", "cost_per_month")
# Largest integer that JSON clients represent exactly.
MAX_LIMIT = 2**53
REFUSAL_DAYS = 7
MAX_REFUSALS = 50


class LimitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A limit with its current usage."""

    limit: Limit
    """The limit."""
    used: Counter | None
    """Usage that counts now; None for a limit of each user, which has a counter for every user."""


async def list_limits(services: Services, caller: Caller) -> list[LimitStatus]:
    """Return every limit for an admin; for others, those of the caller and the caller's token."""
    limits = await services.store.limits.all()
    if caller.role == "admin":
        counter_names = [(limit, None if limit.scope == "each" else limit.name) for limit in limits]
    else:
        counter_names = [(limit, _counter_of(limit, caller)) for limit in _limits_of(limits, caller)]
    counters = await services.store.limits.counters([name for _, name in counter_names if name is not None])
    return [
        LimitStatus(limit=limit, used=None if name is None else counters.get(name, Counter()))
        for limit, name in counter_names
    ]


async def list_refusals(services: Services, caller: Caller) -> list[RefusalCount]:
    """Return how often limits refused requests in the last REFUSAL_DAYS days: of all users for an admin, else own."""
    user_id = None if caller.role == "admin" else caller.user_id
    since = services.clock() - REFUSAL_DAYS * DAY_US
    return await services.store.limits.refusals(since, user_id=user_id, limit=MAX_REFUSALS)


async def get_limit(services: Services, caller: Caller, who: str, model: str | None) -> LimitStatus:
    """Return the limit of `who` and `model`, with its usage. Raises Forbidden, NotFound, BadRequest."""
    check_admin(caller)
    name = (await limit_for(services, who, model)).name
    status = next((status for status in await list_limits(services, caller) if status.limit.name == name), None)
    if status is None:
        raise _no_limit(name)
    return status


async def set_limit(services: Services, caller: Caller, limit: Limit) -> None:
    """Set the limit for an admin, in place of one with the same scope. Raises Forbidden, BadRequest."""
    check_admin(caller)
    await put_limit(services, limit)


async def remove_limit(services: Services, caller: Caller, who: str, model: str | None) -> None:
    """Remove the limit of `who` and `model` for an admin. Raises Forbidden, NotFound, BadRequest."""
    check_admin(caller)
    await delete_limit(services, await limit_for(services, who, model))


async def put_limit(services: Services, limit: Limit) -> None:
    """Set a limit for an operator, without a caller; every process applies it within a second. Raises BadRequest."""
    if (fault := _limit_fault(limit)) is not None:
        raise BadRequest(fault)
    await services.store.limits.put_limit(limit)
    services.caches.limits.invalidate()


async def delete_limit(services: Services, limit: Limit) -> None:
    """Remove a limit for an operator, without a caller. Raises NotFound."""
    if not await services.store.limits.drop_limit(limit.name):
        raise _no_limit(limit.name)
    services.caches.limits.invalidate()


async def all_limits(services: Services) -> Sequence[Limit]:
    """Return every limit."""
    return await services.store.limits.all()


async def limit_for(services: Services, who: str, model: str | None) -> Limit:
    """Return an empty limit for `all`, `each`, `user:EMAIL` or `token:ID`. Raises BadRequest, NotFound."""
    scope, _, subject = who.partition(":")
    match scope, subject:
        case (("all" | "each"), ""):
            return Limit(scope=scope, model=model)
        case "user", email if email:
            user = await user_with_email(services, email)
            return Limit(scope="user", id=user.id, email=user.email, model=model)
        case "token", token_id if token_id.isascii() and token_id.isdigit() and len(token_id) < 10:
            return Limit(scope="token", id=int(token_id), model=model)
        case _:
            raise BadRequest(f"`who` must be all, each, user:EMAIL or token:ID (got {who!r}).")


def limit_subject(limit: Limit) -> str:
    """Return the scope of the limit as `all`, `each`, `user:EMAIL` or `token:ID`."""
    return {"user": f"user:{limit.email}", "token": f"token:{limit.id}"}.get(limit.scope, limit.scope)


def _limit_fault(limit: Limit) -> str | None:
    """Return the reason why the limit is invalid, or None."""
    fields = msgspec.structs.asdict(limit)
    numbers = {name: fields[name] for name in (*COUNTS, *COSTS) if fields[name] is not None}
    if not numbers:
        return f"A limit needs at least one of {', '.join((*COUNTS, *COSTS))}."
    wrong = next((name for name, number in numbers.items() if not 0 <= number <= MAX_LIMIT), None)
    return None if wrong is None else f"`{wrong}` must be from 0 to 2**53."


def _limits_of(limits: Iterable[Limit], caller: Caller) -> list[Limit]:
    """Return the limits of this caller or their token. A user's own limit replaces that of each user."""
    own = [
        limit for limit in limits if (limit.scope, limit.id) in {("user", caller.user_id), ("token", caller.token_id)}
    ]
    models = {limit.model for limit in own if limit.scope == "user"}
    return [*own, *(limit for limit in limits if limit.scope == "each" and limit.model not in models)]


def _counter_of(limit: Limit, caller: Caller) -> str:
    return limit.name if limit.scope == "token" else limit_name("user", caller.user_id, limit.model)


def _no_limit(name: str) -> NotFound:
    return NotFound(f"There is no limit for {name}; list them with `GET /api/limits`.")
