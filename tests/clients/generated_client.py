"""Submit a job with the generated client, and print its answer; the arguments are the address and the token."""

import json
import sys

from signoff_client import AuthenticatedClient
from signoff_client.api.jobs import api_jobs_job_id_show_job, api_jobs_post_job
from signoff_client.models import JobAnswer, NewJob

url, token = sys.argv[1:]
with AuthenticatedClient(base_url=url, token=token, raise_on_unexpected_status=True) as client:
    body = {"messages": [{"role": "user", "content": "one two"}]}
    accepted = api_jobs_post_job.sync(client=client, body=NewJob(body=body, target="echo"))
    assert isinstance(accepted, JobAnswer), accepted
    ended = api_jobs_job_id_show_job.sync(accepted.job_id, client=client, wait=60)
    assert isinstance(ended, JobAnswer), ended
    sys.stdout.write(json.dumps({"status": ended.status, "text": ended.response["choices"][0]["message"]["content"]}))
