"""Process-local caches of models, callers, prices and limits: a change during a read takes effect on the next read."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from signoff.core.api_tokens import hash_token
from signoff.core.limits import Limit
from signoff.core.model import Model
from signoff.core.price import Price
from signoff.errors import ModelNotFound, NoDefaultModel, Overloaded, Unauthorized
from signoff.runtime.invalidation import Invalidation
from signoff.runtime.limits import LimitCache
from signoff.runtime.models import ModelCache
from support.live_server import live
from support.stores import a_job, opened

pytestmark = pytest.mark.anyio


class SlowRead:
    """A read of the store that returns only once `go_on` is set, with the value from when it began."""

    def __init__(self, read: Any) -> None:
        self.read = read
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, *args: Any) -> Any:
        value = await self.read(*args)
        self.begun.set()
        await self.go_on.wait()
        return value


async def test_a_model_dropped_during_a_read_is_unknown_afterwards(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("one")
        catalog, models = server.services.store.catalog, server.services.caches.models
        slow = SlowRead(catalog.models)
        catalog.models = slow  # type: ignore[method-assign]
        task = asyncio.ensure_future(models.find("one"))
        await slow.begun.wait()
        catalog.models = slow.read  # type: ignore[method-assign]

        await catalog.drop_model("one")
        models.invalidate()
        slow.go_on.set()

        assert (await task).name == "one"
        with pytest.raises(ModelNotFound):
            await models.find("one")


async def test_a_pattern_hides_names_also_right_after_a_change(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("gpt*")
        models = server.services.caches.models
        await models.all()
        models.invalidate()  # as by a change of any model, while a request is resolved
        assert await models.is_hidden_by_pattern("gpt4")
        models.invalidate()
        assert await models.contains("gpt*")
        assert not await models.is_hidden_by_pattern("gpt*")


async def test_echo_is_never_the_default_model(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        models = ModelCache(server.services.store.catalog, [Model(name="echo", kind="echo")])
        with pytest.raises(NoDefaultModel, match="signoff model default NAME") as caught:
            await models.find(None)
        assert (caught.value.status, caught.value.code) == (404, "no_default_model")
        await server.model("mine", default=True)
        models.invalidate()
        assert (await models.find(None)).name == "mine"


async def test_a_token_that_ends_during_a_read_is_invalid_afterwards(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        people, callers = server.services.store.people, server.services.caches.callers
        slow = SlowRead(people.token)
        people.token = slow  # type: ignore[method-assign]
        task = asyncio.ensure_future(callers.identify(token, "api", 0))
        await slow.begun.wait()
        people.token = slow.read  # type: ignore[method-assign]

        await people.end_token(hash_token(token))
        callers.invalidate()
        slow.go_on.set()

        await task
        with pytest.raises(Unauthorized):
            await callers.identify(token, "api", 0)


async def test_concurrent_lookups_during_a_read_of_prices_both_get_the_price(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        usage, prices = server.services.store.usage, server.services.caches.prices
        await usage.put_price(Price(model="m", valid_from=0, input=1, output=2))
        prices.invalidate()
        slow = SlowRead(usage.prices)
        usage.prices = slow  # type: ignore[method-assign]
        lookups = asyncio.gather(prices.at("m", 1), prices.at("m", 1))
        await slow.begun.wait()
        slow.go_on.set()

        results = await lookups

        assert [price is not None and price.output for price in results] == [2, 2]


async def test_a_limit_set_during_a_read_applies_to_the_next_request(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        store = server.services.store.limits
        limits, job = LimitCache(store), a_job()
        slow = SlowRead(store.all)
        store.all = slow  # type: ignore[method-assign]
        task = asyncio.ensure_future(limits.of(job))
        await slow.begun.wait()
        store.all = slow.read  # type: ignore[method-assign]

        await store.put_limit(Limit(scope="all", requests_per_minute=1))
        limits.invalidate()
        slow.go_on.set()

        assert await task == ()
        assert [limit.requests_per_minute for _, limit in await limits.of(job)] == [1]


async def test_copies_of_callers_are_discarded_in_time_but_not_while_the_store_is_unavailable(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/store.db") as store:
        discarded = list[str]()
        callbacks = {topic: partial(discarded.append, topic) for topic in ("people", "models")}
        invalidation = Invalidation(store, callbacks, expiring=["people"])
        read_versions = store.versions

        async def fail() -> dict[str, int]:
            raise Overloaded

        store.versions = fail  # type: ignore[method-assign]
        await invalidation._compare()
        assert discarded == []

        store.versions = read_versions  # type: ignore[method-assign]
        await invalidation._compare()
        discarded.clear()
        await invalidation._compare()
        assert discarded == []
        invalidation._expire_at = 0.0
        await invalidation._compare()
        assert discarded == ["people"]
