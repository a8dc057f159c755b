"""A simulated Signoff process: its services, as `server/bootstrap.py` opens them, on an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from cryptography.fernet import Fernet
from obstore.store import MemoryStore as MemoryBlobs

from signoff.blobs.object_store import ObjectBlobs
from signoff.brokers.local import LocalBroker
from signoff.cache import CacheBounds
from signoff.caches.memory import MemoryCache
from signoff.core.access import Caller
from signoff.core.allow_list import AllowList
from signoff.core.cache import CacheEntry
from signoff.core.retry import Backoff
from signoff.core.reviews.policy import JobPolicy
from signoff.core.signing import Secret
from signoff.core.stream import Stream
from signoff.errors import SignoffError
from signoff.infra.vault import Vault
from signoff.runtime.background import Background
from signoff.runtime.backlogs import Backlogs
from signoff.runtime.caller_leases import CallerLeases
from signoff.runtime.callers import CallerCache
from signoff.runtime.file_sizes import FileSizes
from signoff.runtime.functions import FunctionRegistry
from signoff.runtime.inflight import InflightCalls
from signoff.runtime.keys import UpstreamKeyCache
from signoff.runtime.leases import Leases
from signoff.runtime.library import LibraryCache
from signoff.runtime.limits import LimitCache
from signoff.runtime.logs import ModelLogWriter
from signoff.runtime.metrics import Metrics
from signoff.runtime.missing_paths import MissingPaths
from signoff.runtime.models import ModelCache
from signoff.runtime.open_calls import OpenCalls
from signoff.runtime.passes import Passes
from signoff.runtime.passwords import PasswordHasher
from signoff.runtime.policies import PolicyCache
from signoff.runtime.pools import EndpointPools
from signoff.runtime.prices import PriceCache
from signoff.runtime.reservations import Reservations
from signoff.runtime.response_cache import ResponseCache
from signoff.runtime.review_queues import ReviewQueueCache
from signoff.runtime.run_sizes import RunSizes
from signoff.runtime.scrape import ScrapeCache
from signoff.runtime.shutdown import Shutdown
from signoff.runtime.streams import StreamCache
from signoff.runtime.watcher import JobWatcher
from signoff.server.supervisor import supervise
from signoff.transport import Transport
from signoff.work.services import Adapters, Caches, Ids, Rules, Runtime, Services
from simulation.checker import Checker
from simulation.clock import Clock
from simulation.loop import SimLoop, Violation
from simulation.network import Network, SimBroker, Wire, resolve
from simulation.outside import MODELS, SimDeliverer, SimEngine
from simulation.store import MemoryStore
from simulation.weather import Climate

T = TypeVar("T")
Verb = Callable[[Services], Awaitable[T]]

CONCURRENCY = 6
VAULT = Vault([Fernet.generate_key()])
BOUNDS = CacheBounds(ttl_seconds=120, max_entries=50, max_bytes=100_000)
SECRET = Secret("whsec_" + "c2lt" * 8)


class Unanswered(SignoffError):
    """Error for a request to a process that is down or disconnects; the outcome of the request is unknown."""

    code = "unanswered"


def rules_of(climate: Climate) -> Rules:
    """Return the rules that all processes of a run share."""
    return Rules(
        lease_seconds=15,
        heartbeat_seconds=5,
        sweep_seconds=2,
        backoff=Backoff(first_seconds=0.5, ceiling_seconds=5),
        hold_seconds=20,
        keep_alive_seconds=5,
        log_before_answer=climate.log_before_answer,
        policy=JobPolicy(
            deadline_seconds=climate.deadline_seconds,
            on_deadline=climate.on_deadline,  # type: ignore[arg-type]
            undo_seconds=climate.undo_seconds,
        ),
        retention_seconds=climate.retention_seconds,
        allow_list=AllowList(),
        webhook_waits_seconds=(0.5, 2, 5),
        webhook_secrets=(SECRET,),
    )


class CheckedResponseCache(ResponseCache):
    """Response cache of one process that shows the checker every entry that it stores."""

    def __init__(self, cache: MemoryCache, background: Background, checker: Checker) -> None:
        super().__init__(cache, background, ttl_seconds=BOUNDS.ttl_seconds)
        self._checker = checker

    def store(self, entry: CacheEntry) -> None:
        """See `ResponseCache`."""
        self._checker.cached(entry)
        super().store(entry)


async def _unchanged(caller: Caller) -> Caller:
    """Return the caller: no simulated user loses their rights during a call."""
    return caller


def _no_transport(stream: Stream) -> Transport:
    raise NotImplementedError(stream.name)


class Process:
    """A process that can be started, stopped, killed, paused and called."""

    def __init__(self, name: str, network: Network, checker: Checker, climate: Climate) -> None:
        self.name = name
        self._network = network
        self._checker = checker
        self._climate = climate
        self._rules = rules_of(climate)
        self._starts = 0
        self._killed_loops: list[SimLoop] = []
        self._requests: dict[asyncio.Future[Any], asyncio.Task[Any]] = {}
        self.start()

    @property
    def is_up(self) -> bool:
        """Return True if the process accepts requests."""
        return self._is_up and not self.loop.is_dead

    def start(self) -> None:
        """Start the process again; nothing is left of its earlier life except the contents of the store."""
        self._starts += 1
        self._is_up = False
        self.clock = Clock(self._network.world.random_float)
        self.loop = SimLoop(self._network.world, self.clock)
        self._stop = asyncio.Event()
        self.wire = Wire(self._network, self.loop)
        self.services = self._services()
        self.main = self.loop.create_task(self._run(self.services, self._stop))
        self.main.add_done_callback(self._ended)

    def stop(self) -> None:
        """Ask the process to shut down in order, as SIGTERM does."""
        self._is_up = False
        self.loop.call_soon(self._stop.set)

    def kill(self) -> None:
        """Kill the process in the middle of its work. Waiting callers learn that the connection broke."""
        self.loop.kill()
        self._killed_loops.append(self.loop)
        for future in self._requests:
            self._network.outside.call_later(self._network.weather.latency(), resolve, future, Unanswered())
        self._requests.clear()

    def bury(self) -> None:
        """Close the coroutines of all loops of this process, after the run."""
        self.loop.kill()
        for loop in [*self._killed_loops, self.loop]:
            loop.bury()

    async def ask(self, verb: Verb[T], patience_seconds: float) -> T:
        """Return the result of `verb` in this process, called from outside. Raises its errors, and Unanswered."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._network.outside.call_later(self._network.weather.latency(), self._accept, verb, future)
        try:
            async with asyncio.timeout(patience_seconds):
                return await future
        except TimeoutError:
            raise Unanswered from None
        finally:
            self._disconnect(future)

    def _accept(self, verb: Verb[Any], future: asyncio.Future[Any]) -> None:
        if future.done():
            return
        if self.is_up:
            self._requests[future] = self.loop.create_task(self._serve(verb, future))
        else:
            resolve(future, Unanswered())

    async def _serve(self, verb: Verb[Any], future: asyncio.Future[Any]) -> None:
        try:
            result = await verb(self.services)
        except Exception as error:  # noqa: BLE001 -- the caller and the checker receive it
            result = error
        if self._requests.pop(future, None) is not None:
            self._network.outside.call_later(self._network.weather.latency(), resolve, future, result)

    def _disconnect(self, future: asyncio.Future[Any]) -> None:
        task = self._requests.pop(future, None)
        if task is not None:
            self.loop.call_soon(task.cancel)

    async def _run(self, services: Services, stop: asyncio.Event) -> None:
        async with supervise(services, concurrency=CONCURRENCY, drain_seconds=self._climate.drain_seconds):
            self._is_up = True
            await stop.wait()
            await self._finish()
        await services.adapters.broker.close()
        await services.store.close()

    async def _finish(self) -> None:
        """Give the requests in progress one second to complete, then cancel them."""
        tasks = list(self._requests.values())
        if tasks:
            await asyncio.wait(tasks, timeout=1)
            for task in tasks:
                task.cancel()

    def _ended(self, main: asyncio.Task[None]) -> None:
        """Kill the process after its main task has ended; fail the run if that task raised an error."""
        error = None if main.cancelled() else main.exception()
        if error is not None:
            self._network.world.fail(Violation(f"a process falls over by itself: {self.name}: {error!r}"))
        self.kill()

    def _services(self) -> Services:
        world, clock = self._network.world, self.clock
        store = MemoryStore(self._network.tables, self.wire)
        background, cache = Background(), MemoryCache(BOUNDS, now=lambda: world.now)
        metrics = Metrics(lambda name: name)
        store.jobs.observe(metrics.transitions_made)
        return Services(
            store=store,  # type: ignore[arg-type]
            adapters=Adapters(
                broker=SimBroker(self._network, self.loop) if self._climate.has_broker else LocalBroker(),
                blobs=ObjectBlobs(MemoryBlobs(), description="memory"),
                engines={"echo": SimEngine(self._network)},
                deliverers={"webhook": SimDeliverer(self._network, self._checker)},
                transport_to=_no_transport,
                vault=VAULT,
            ),
            caches=Caches(
                models=ModelCache(store.catalog, MODELS),
                prices=PriceCache(store.usage),
                library=LibraryCache(store.library),
                functions=FunctionRegistry(store.library, [], seconds=10, clock=lambda: clock.wall(world.now)),
                keys=UpstreamKeyCache(store.catalog, VAULT),  # type: ignore[arg-type]
                callers=CallerCache(store.people),
                reviewers=ReviewQueueCache(store.people, store.review_queues),
                streams=StreamCache(store.streams, []),  # type: ignore[arg-type]
                limits=LimitCache(store.limits),
                policies=PolicyCache(store.policies),
                responses=CheckedResponseCache(cache, background, self._checker),
            ),
            runtime=Runtime(
                pools=EndpointPools(),
                leases=Leases(store, lease_seconds=15, heartbeat_seconds=5),  # type: ignore[arg-type]
                reservations=Reservations(store.limits, lease_seconds=15, heartbeat_seconds=5),
                passes=Passes(store.budgets, lambda: f"lease-{world.number()}"),
                backlogs=Backlogs(store.jobs, max_jobs=100_000, max_bytes=2**30),
                run_sizes=RunSizes(64 * 2**20),
                file_sizes=FileSizes(2**30),
                watcher=JobWatcher(store),  # type: ignore[arg-type]
                caller_leases=CallerLeases(store.departures, background, lease_seconds=15, heartbeat_seconds=5),
                missing_paths=MissingPaths(),
                open_calls=OpenCalls(_unchanged),
                inflight_calls=InflightCalls(),
                metrics=metrics,
                scrape=ScrapeCache(),
                logs=ModelLogWriter(store.model_logs, lambda: clock.wall(world.now)),
                passwords=PasswordHasher(),
                shutdown=Shutdown(),
                background=background,
            ),
            ids=Ids(
                new_id=lambda: f"{clock.wall(world.now):016x}-{world.number()}",
                new_secret=lambda: "s" * 32,
                random_float=world.random_float.random,
                actor=f"worker:{self.name}.{self._starts}",
            ),
            clock=lambda: clock.wall(world.now),
            rules=self._rules,
        )
