"""Judgement: what the policy of a job says about an answer that has come, before anything of it leaves."""

import msgspec

from signoff.core.dialects.answer import Answer
from signoff.core.job import Job
from signoff.core.reviews.ruling import Ruling
from signoff.errors import SignoffError
from signoff.work.services import Services


async def judge(services: Services, job: Job, outcome: Answer | SignoffError) -> Job:
    """Return `job` with the ruling of its policy on its answer; as it is if the policy looks at nothing."""
    _ = services
    if isinstance(outcome, SignoffError) or not job.policy.may_hold:
        return job
    return msgspec.structs.replace(job, ruling=Ruling(outcome="hold"))
