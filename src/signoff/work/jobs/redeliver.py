"""Resend: deliveries as their owners see them, and sending one again by hand."""

from __future__ import annotations

from signoff.core.access import Caller
from signoff.core.delivery import Delivery
from signoff.errors import Forbidden, JobNotFound, NotFound
from signoff.work.jobs.query import get_job
from signoff.work.services import Services


async def list_deliveries(services: Services, caller: Caller, job_id: str) -> list[Delivery]:
    """Who is told of the job's end, and how far that has come. Raises JobNotFound."""
    await get_job(services, caller, job_id)
    return await services.store.deliveries.of_job(job_id)


async def redeliver(services: Services, caller: Caller, delivery_id: str) -> Delivery:
    """The delivery, due at once, under the id that it always had. Raises NotFound, Forbidden, Stale."""
    unknown = NotFound(f"There is no delivery {delivery_id}.")
    delivery = await services.store.deliveries.get(delivery_id)
    if delivery is None:
        raise unknown
    try:
        job = await get_job(services, caller, delivery.job_id)
    except JobNotFound:
        raise unknown from None
    if caller.role != "admin" and caller.user_id != job.user_id:
        raise Forbidden("Only its owner or an admin can send a delivery again.")
    return await services.store.deliveries.resend(delivery_id)
