"""The short form of a job: its status, and the text of its answer."""

from typing import Any

from signoff.core.dialects.answer import content_or_json
from signoff.core.job import Job

# Values of `job_status`, by status of the job.
JOB_STATUS = {"bot": "pending", "human": "in_review", "success": "completed", "fail": "error"}


def result_of(job: Job) -> dict[str, Any]:
    """Return the members `job_id`, `job_status`, `content` and `error`; an answer that is not signed off is left out.

    The content is the text of the answer, else its JSON.
    """
    is_claimed = job.status == "bot" and job.lease is not None
    return {
        "job_id": job.client_id or job.id,
        "job_status": "in_progress" if is_claimed else JOB_STATUS[job.status],
        "content": content_or_json(job.response) if job.status == "success" and job.response is not None else None,
        "error": job.error,
    }
