"""The door to deliveries: who was told of a job's end, and telling them again."""

from __future__ import annotations

from typing import Any

from litestar import Router, get, post
from litestar.params import FromPath

from signoff.core.delivery import Delivery
from signoff.core.wire import format_time
from signoff.doors.http import InjectedCaller, InjectedServices
from signoff.work.jobs.redeliver import list_deliveries, redeliver


@get("/jobs/{job_id:str}/deliveries", summary="Who is told of a job's end")
async def of_job(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """The job's deliveries; none before it has ended."""
    return {"data": [_as_seen(delivery) for delivery in await list_deliveries(services, caller, job_id)]}


@post("/deliveries/{delivery_id:str}/resend", status_code=202, summary="Send a delivery again")
async def again(services: InjectedServices, caller: InjectedCaller, delivery_id: FromPath[str]) -> dict[str, Any]:
    """The delivery, which is due now."""
    return _as_seen(await redeliver(services, caller, delivery_id))


def _as_seen(delivery: Delivery) -> dict[str, Any]:
    """A delivery as the wire has it. Its address is its host alone: the rest of a webhook's URL is often a secret."""
    return {
        "id": delivery.id,
        "job_id": delivery.job_id,
        "kind": delivery.kind,
        "host": delivery.host,
        "state": delivery.state,
        "attempts": delivery.attempt,
        "status": delivery.last_status,
        "error": delivery.last_error,
        "due_at": format_time(delivery.due_at) if delivery.state == "due" else None,
        "done_at": None if delivery.done_at is None else format_time(delivery.done_at),
        "created_at": format_time(delivery.created_at),
    }


router = Router("/api", route_handlers=[of_job, again], tags=["deliveries"])
