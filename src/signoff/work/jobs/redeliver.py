"""Redelivery: list the deliveries of a job, and send one again."""

from signoff.core.access import Caller
from signoff.core.delivery import Delivery
from signoff.errors import Forbidden, JobNotFound, NotFound
from signoff.work.jobs.query import get_job
from signoff.work.services import Services


async def list_deliveries(services: Services, caller: Caller, job_id: str) -> list[Delivery]:
    """Return the deliveries of the job, with their states. Raises JobNotFound."""
    await get_job(services, caller, job_id)
    return await services.store.deliveries.of_job(job_id)


async def redeliver(services: Services, caller: Caller, delivery_id: str) -> Delivery:
    """Return the delivery, due at once under its old id.

    Raises NotFound, Forbidden, and Stale while it is being sent.
    """
    not_found = NotFound(f"There is no delivery {delivery_id}.")
    delivery = await services.store.deliveries.get(delivery_id)
    if delivery is None:
        raise not_found
    try:
        job = await get_job(services, caller, delivery.job_id)
    except JobNotFound:
        raise not_found from None
    if caller.role != "admin" and caller.user_id != job.user_id:
        raise Forbidden("Only the owner of a job or an admin may send its deliveries again.")
    return await services.store.deliveries.redeliver(delivery_id)
