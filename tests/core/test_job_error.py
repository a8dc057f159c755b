"""Tests of the errors of failed jobs."""

from __future__ import annotations

import pytest

from signoff.core.job import JobError
from signoff.errors import JobFailed


@pytest.mark.parametrize("status", range(400, 600))
def test_a_failed_job_is_retryable_for_its_key_if_it_is_for_its_caller(status: int) -> None:
    error = JobError(code="model_error", message="No.", status=status)
    assert error.retryable is JobFailed("No.", status=status, code="model_error", job_id="1").retryable


@pytest.mark.parametrize("status", [400, 404, 409, 422, 501, 505, 510, 511])
def test_a_job_whose_failure_no_retry_can_change_keeps_its_key(status: int) -> None:
    assert not JobError(code="model_error", message="No.", status=status).retryable


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_a_job_whose_failure_a_retry_can_change_frees_its_key(status: int) -> None:
    assert JobError(code="model_error", message="No.", status=status).retryable
