"""Redelivery: list the deliveries of a job, and send one again."""

from signoff.core.access import Caller
from signoff.core.batch import is_batch_id
from signoff.core.delivery import Delivery
from signoff.errors import Forbidden, NotFound, no_delivery
from signoff.work.batches.manage import find_batch
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
    not_found = no_delivery(delivery_id)
    delivery = await services.store.deliveries.get(delivery_id)
    if delivery is None:
        raise not_found
    try:
        owner_id = await _owner_of(services, caller, delivery.job_id)
    except NotFound:
        raise not_found from None
    if caller.role != "admin" and caller.user_id != owner_id:
        raise Forbidden("Only the owner of a job or an admin may send its deliveries again.")
    return await services.store.deliveries.redeliver(delivery_id)


async def _owner_of(services: Services, caller: Caller, job_id: str) -> int:
    """Return the owner of a job or a batch that the caller may see. Raises NotFound."""
    if is_batch_id(job_id):
        return (await find_batch(services, caller, job_id)).user_id
    return (await get_job(services, caller, job_id)).user_id
