"""The native API of deliveries, which are messages about the end of a job: list them, and send one again."""

from typing import Any

from litestar import Router, get, post
from litestar.params import FromPath

from signoff.core.delivery import Delivery
from signoff.core.wire import format_time
from signoff.doors.dependencies import InjectedCaller, InjectedServices
from signoff.work.jobs.redeliver import list_deliveries, redeliver


@get("/jobs/{job_id:str}/deliveries", summary="List the deliveries of a job")
async def get_deliveries(services: InjectedServices, caller: InjectedCaller, job_id: FromPath[str]) -> dict[str, Any]:
    """Return the deliveries of a job; there are none before the job has ended."""
    return {"data": [_delivery_json(delivery) for delivery in await list_deliveries(services, caller, job_id)]}


@post("/deliveries/{delivery_id:str}/resend", status_code=202, summary="Send a delivery again")
async def resend_delivery(
    services: InjectedServices, caller: InjectedCaller, delivery_id: FromPath[str]
) -> dict[str, Any]:
    """Make the delivery due now, and return it."""
    return _delivery_json(await redeliver(services, caller, delivery_id))


def _delivery_json(delivery: Delivery) -> dict[str, Any]:
    """Return a delivery for a response, with the host of its URL alone: the rest of a webhook's URL is often secret."""
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


router = Router("/api", route_handlers=[get_deliveries, resend_delivery], tags=["deliveries"])
