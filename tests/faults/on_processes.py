"""Faults of processes: kills at random times and at named points, stops past their leases, and wrong clocks."""

from __future__ import annotations

import signal

from faults.cluster import Member
from faults.nemesis import Fault, Impact
from faults.world import World, until

PASS_SECONDS = 6.0
LAPSE_SECONDS = 9.0
HOUR = 3600.0


async def kill_a_worker(world: World) -> Impact:
    """Kill a worker with SIGKILL, whatever it is doing."""
    member = world.any_worker()
    await world.cluster.kill(member)
    impact = Impact(await world.tables.leased_jobs(member.actor))
    await world.cluster.replace(member)
    return impact


async def kill_a_server(world: World) -> Impact:
    """Kill a server with SIGKILL while callers wait for responses."""
    member = world.any_server()
    requests = world.open_requests[member.name]
    await world.cluster.kill(member)
    await world.cluster.replace(member)
    return Impact([], requests)


def killed_at(point: str, kind: str, when: str) -> Fault:
    """Return a fault in which a process kills itself at a named point while it works on a job."""

    async def kill(world: World) -> Impact:
        member = world.any_worker() if kind == "worker" else world.any_server()
        impact = await _run_at_point(point, "kill", member)
        await world.cluster.replace(member)
        return impact

    kill.__name__ = f"kill_a_{kind}_{point.replace('-', '_')}"
    kill.__doc__ = f"SIGKILL {when}."
    return kill


killed_after_claim = killed_at("after-claim", "worker", "once the lease is committed, before the model is asked")
killed_after_answer = killed_at("after-answer", "worker", "between the model's answer and its settling")
killed_before_commit = killed_at("before-commit", "worker", "in the middle of a transaction")
killed_after_settle = killed_at("after-settle", "worker", "once the job's end is committed, before the worker knows")
killed_before_release = killed_at("before-release", "worker", "between a verdict and its taking effect")
killed_after_post = killed_at("after-post", "worker", "once a webhook was posted, before that is written down")
killed_after_commit = killed_at("after-commit", "server", "once a job is committed, before its caller is told")
killed_after_decide = killed_at("after-decide", "server", "once a verdict is committed, before it takes effect")


async def stop_a_worker_past_its_leases(world: World) -> Impact:
    """Stop a worker with SIGSTOP until its leases have run out, then continue it with SIGCONT."""
    member = await world.busy_worker()
    member.signal(signal.SIGSTOP)
    try:
        return await wait_for_lapse(world, member, await world.tables.leased_jobs(member.actor))
    finally:
        member.signal(signal.SIGCONT)


async def stop_a_worker_with_its_answer(world: World) -> Impact:
    """Stop a worker between the model's answer and the settling, and continue it after its lease has run out."""
    member = await world.busy_worker()
    try:
        impact = await _run_at_point("after-answer", "stop", member)
        return await wait_for_lapse(world, member, impact.jobs)
    finally:
        member.orders.clear()
        member.signal(signal.SIGCONT)


async def clock_an_hour_ahead(world: World) -> Impact:
    """Set a worker's clock an hour ahead until it has finished its jobs."""
    return await _run_with_wrong_clock(world, HOUR)


async def clock_an_hour_behind(world: World) -> Impact:
    """Set a worker's clock an hour behind until it has finished its jobs."""
    return await _run_with_wrong_clock(world, -HOUR)


async def _run_at_point(point: str, action: str, member: Member) -> Impact:
    """Order a process to kill or stop itself at `point`; return the jobs it had there, or none after PASS_SECONDS."""
    count = len(member.records())

    async def has_run() -> bool:
        return len(member.records()) > count

    member.orders.give(action, point)
    if not await until(has_run, PASS_SECONDS):
        member.orders.clear()
        return Impact([])
    return Impact(member.records()[-1].get("jobs", []))


async def wait_for_lapse(world: World, member: Member, jobs: list[str]) -> Impact:
    """Wait until leases of the process on `jobs` have run out, and return those jobs."""
    lapsed_jobs = list[str]()

    async def has_lapsed() -> bool:
        lapsed_jobs[:] = await world.tables.lapsed(jobs, member.actor)
        return bool(lapsed_jobs)

    if jobs:
        await until(has_lapsed, LAPSE_SECONDS)
    return Impact(lapsed_jobs)


async def _run_with_wrong_clock(world: World, seconds: float) -> Impact:
    member = await world.busy_worker()
    jobs = await world.tables.leased_jobs(member.actor)

    async def has_finished() -> bool:
        return not set(jobs) & set(await world.tables.leased_jobs(member.actor))

    member.orders.clock_shift = seconds
    await until(has_finished, PASS_SECONDS)
    member.orders.clock_shift = 0
    return Impact(jobs)
