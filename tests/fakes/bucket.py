"""A bucket of a server that speaks S3, which is `moto` in a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

BUCKET = "signoff-test"
START_SECONDS = 60


@contextlib.contextmanager
def bucket_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a server with an empty bucket, set the variables that lead to it, and yield its URL."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", "0"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stderr is not None
        address = next(match[0] for line in server.stderr if (match := re.search(r"http://[\d.]+:\d+", line)))
        request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=START_SECONDS).close()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address,
        }.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/below"
    finally:
        server.terminate()
        server.wait()
        if server.stderr is not None:
            server.stderr.close()
