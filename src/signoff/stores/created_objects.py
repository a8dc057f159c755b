"""The record of which job created the parts of an answer."""

from signoff.core.job import Job
from signoff.core.upstream_objects import ids_in_answer
from signoff.stores.objects_schema import created_objects
from signoff.stores.transaction import Tx


def add_created_objects(tx: Tx, job: Job) -> None:
    """Record the objects that the upstream stores as parts of an answer, such as the items of a response.

    The object of the answer itself is in the job's row. It is recorded here too while the answer is held, because the
    answer that follows one that was sent back takes its place in the row.
    """
    if job.upstream_object_id is None or job.response is None:
        return
    object_ids = ids_in_answer(job.response, job.body) - {job.upstream_object_id}
    if job.status == "human":
        object_ids.add(job.upstream_object_id)
    for object_id in object_ids:
        tx.add_missing(created_objects, {"object_id": object_id, "job_id": job.id})
