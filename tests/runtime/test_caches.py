"""Process-local caches of models, callers, prices and limits: a change during a read takes effect on the next read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from signoff.core.api_tokens import digest
from signoff.core.limits import Limit
from signoff.core.price import Price
from signoff.errors import ModelNotFound, Unauthorized
from signoff.runtime.limits import LimitCache
from support.live_server import live
from support.stores import a_job

pytestmark = pytest.mark.anyio


class Slow:
    """A read of the store that returns only once `go_on` is set, with the value from when it began."""

    def __init__(self, read: Any) -> None:
        self.read = read
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, *args: Any) -> Any:
        found = await self.read(*args)
        self.begun.set()
        await self.go_on.wait()
        return found


async def test_a_model_that_is_dropped_while_models_are_read_is_not_known_afterwards(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("one")
        catalog, models = server.services.store.catalog, server.services.caches.models
        slow = Slow(catalog.models)
        catalog.models = slow  # type: ignore[method-assign]
        finding = asyncio.ensure_future(models.find("one"))
        await slow.begun.wait()
        catalog.models = slow.read  # type: ignore[method-assign]

        await catalog.drop_model("one")
        models.invalidate()
        slow.go_on.set()

        assert (await finding).name == "one"
        with pytest.raises(ModelNotFound):
            await models.find("one")


async def test_a_token_that_ends_while_it_is_read_is_not_valid_afterwards(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        people, callers = server.services.store.people, server.services.caches.callers
        slow = Slow(people.token)
        people.token = slow  # type: ignore[method-assign]
        asking = asyncio.ensure_future(callers.identify(token, "api", 0))
        await slow.begun.wait()
        people.token = slow.read  # type: ignore[method-assign]

        await people.end_token((await slow.read(digest(token)))[0].digest)
        callers.invalidate()
        slow.go_on.set()

        await asking
        with pytest.raises(Unauthorized):
            await callers.identify(token, "api", 0)


async def test_who_asks_for_a_price_while_prices_are_read_is_told_it_too(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ledger, prices = server.services.store.usage, server.services.caches.prices
        await ledger.put_price(Price(model="m", valid_from=0, input=1, output=2))
        prices.invalidate()
        slow = Slow(ledger.prices)
        ledger.prices = slow  # type: ignore[method-assign]
        slow.go_on.set()

        found = await asyncio.gather(prices.at("m", 1), prices.at("m", 1))

        assert [price is not None and price.output for price in found] == [2, 2]


async def test_a_limit_that_is_set_while_limits_are_read_holds_for_the_next_request(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        quotas = server.services.store.quotas
        limits, job = LimitCache(quotas), a_job()
        slow = Slow(quotas.limits)
        quotas.limits = slow  # type: ignore[method-assign]
        asking = asyncio.ensure_future(limits.of(job))
        await slow.begun.wait()
        quotas.limits = slow.read  # type: ignore[method-assign]

        await quotas.put_limit(Limit(who="all", requests_per_minute=1))
        limits.invalidate()
        slow.go_on.set()

        assert await asking == ()
        assert [limit.requests_per_minute for _, limit in await limits.of(job)] == [1]
