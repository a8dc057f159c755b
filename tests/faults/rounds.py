"""Rounds by name, and the order of their faults."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from faults import on_disk, on_network, on_processes, on_services
from faults.nemesis import Fault
from faults.round import Round
from faults.setting import embedded, with_servers
from faults.wishes import QUICK
from faults.world import World

POINTS: list[Fault] = [
    on_processes.killed_after_claim,
    on_processes.killed_after_answer,
    on_processes.killed_before_commit,
    on_processes.killed_after_commit,
    on_processes.killed_after_settle,
    on_processes.killed_after_decide,
    on_processes.killed_before_release,
    on_processes.killed_after_post,
]
RANDOM: list[Fault] = [on_processes.kill_a_worker, on_processes.kill_a_server]
STOPS: list[Fault] = [
    on_processes.stop_a_worker_with_its_answer,
    on_processes.stop_a_worker_past_its_leases,
    on_processes.clock_an_hour_ahead,
    on_processes.clock_an_hour_behind,
]
SERVICES: list[Fault] = [
    on_services.kill_rabbitmq,
    on_services.delete_the_queue,
    on_services.close_the_connections_of_rabbitmq,
    on_services.raise_the_memory_alarm,
    on_services.stop_postgres,
    on_services.terminate_the_backends,
    on_services.exhaust_the_connections,
    on_services.hold_a_long_transaction,
    on_services.kill_redis,
    on_services.flush_redis,
]
NETWORK: list[Fault] = [
    on_network.reset_every_wire,
    on_network.stall_every_wire,
    on_network.cut_a_worker_off,
    on_network.leave_a_worker_half_open,
]


def each_once(world: World) -> Iterator[Fault]:
    """Return all faults once, in random order."""
    plan = [*POINTS, *RANDOM, *STOPS, *SERVICES, *NETWORK]
    world.rng.shuffle(plan)
    return iter(plan)


def without_end(world: World) -> Iterator[Fault]:
    """Yield all faults again and again, with more kills between them."""
    while True:
        for fault in each_once(world):
            yield world.rng.choice([*POINTS, *RANDOM, *RANDOM])
            yield fault


def on_one_file(world: World) -> Iterator[Fault]:
    """Return the faults that need no servers, in random order; with a full disk if there is a small one."""
    plan = [on_processes.kill_a_server, *STOPS, *POINTS[:4], on_processes.kill_a_worker]
    plan += [on_disk.fill_the_disk] if world.disk is not None else []
    world.rng.shuffle(plan)
    return iter(plan)


def on_one_file_without_end(world: World) -> Iterator[Fault]:
    """Return the faults that need no servers, again and again."""
    return itertools.chain.from_iterable(on_one_file(world) for _ in itertools.count())


def only(*faults: Fault) -> Round:
    """Return a tiny round on one SQLite file, with these faults again and again."""
    return replace(
        SHORT_FILE,
        name="tiny",
        plan=lambda _: itertools.cycle(faults),
        workers=2,
        concurrent_callers=6,
        seconds=6,
        longest_pause_seconds=60,
        later=QUICK,
        limit_seconds=240,
    )


SHORT_SERVERS = Round(
    name="servers",
    setting=with_servers,
    plan=each_once,
    servers=2,
    workers=3,
    concurrent_callers=24,
    backlog=200,
    seconds=60,
    longest_pause_seconds=90,
    limit_seconds=400,
)
# The database was migrated by this code, and some processes still run that of the last release.
OLD_SERVERS = replace(SHORT_SERVERS, name="old-servers", setting=partial(with_servers, of_last_release="server"))
OLD_WORKERS = replace(SHORT_SERVERS, name="old-workers", setting=partial(with_servers, of_last_release="worker"))
SHORT_FILE = Round(
    name="file",
    setting=embedded,
    plan=on_one_file,
    servers=1,
    workers=2,
    concurrent_callers=8,
    backlog=100,
    seconds=16,
    longest_pause_seconds=60,
    limit_seconds=300,
)
# The smallest useful round; part of every run of the tests.
SMOKE = replace(
    SHORT_FILE,
    name="smoke",
    plan=lambda _: iter([on_processes.killed_after_claim, on_processes.kill_a_server, on_processes.kill_a_worker]),
    seconds=10,
    later=QUICK,
)
LONG_SERVERS = replace(
    SHORT_SERVERS,
    plan=without_end,
    concurrent_callers=64,
    backlog=1000,
    verdicts_at_once=6,
    gap_seconds=2,
    seconds=2700,
    longest_pause_seconds=120,
    limit_seconds=4200,
    jobs=100_000,
    kills=200,
)
LONG_FILE = replace(SHORT_FILE, plan=on_one_file_without_end, seconds=300, jobs=10_000, kills=30, limit_seconds=900)
ROUNDS: dict[str, list[Round]] = {
    "smoke": [SMOKE],
    "short": [SHORT_SERVERS, SHORT_FILE],
    "long": [LONG_SERVERS, LONG_FILE],
    "upgrade": [OLD_SERVERS, OLD_WORKERS],
    "old-servers": [OLD_SERVERS],
    "old-workers": [OLD_WORKERS],
    "servers": [SHORT_SERVERS],
    "file": [SHORT_FILE],
    "long-servers": [LONG_SERVERS],
    "long-file": [LONG_FILE],
}
# For each mutation, the round in which the checker must detect it.
MUTANTS: dict[str, Round] = {
    "no-lease-guard": only(on_processes.stop_a_worker_with_its_answer),
    "no-round-guard": only(on_processes.kill_a_worker),
    "no-write-lock": only(on_processes.kill_a_worker),
    "late-delivery": only(on_processes.killed_after_settle),
    "early-acknowledgement": only(on_processes.kill_a_server),
    "no-veil": only(on_processes.kill_a_worker),
    "no-keys": only(on_processes.killed_after_commit),
    "own-clock": only(on_processes.clock_an_hour_ahead),
}
