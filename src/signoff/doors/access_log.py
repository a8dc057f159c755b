"""The access log: one line for each HTTP request, without bodies, queries and secrets."""

import asyncio
import re

import structlog

from signoff.doors.http import ASGIApp, Message, Receive, Scope, Send

# Status in the log of a request whose client left before the response began, as nginx writes it.
CLIENT_LEFT = 499
# Paths that end in a secret.
SECRET_PATHS = ("/signin/",)
REPEATED_SLASHES = re.compile("/{2,}")
JOB_HEADER, LOCATION, JOB_PATH = b"x-signoff-job", b"location", b"/api/jobs/"
log = structlog.get_logger()


async def serve_and_log(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the request by `app`, and log it when the response has ended."""
    clock, status, job_id = asyncio.get_running_loop().time, CLIENT_LEFT, None
    began_at = clock()

    async def send_and_note(message: Message) -> None:
        nonlocal status, job_id
        if message["type"] == "http.response.start":
            status, job_id = message["status"], job_id_in(message)
        await send(message)

    try:
        await app(scope, receive, send_and_note)
    finally:
        log.info(
            "request",
            method=scope["method"],
            path=public_path(scope["path"]),
            status=status,
            duration_ms=round((clock() - began_at) * 1000, 1),
            **({} if job_id is None else {"job_id": job_id}),
        )


def public_path(path: str) -> str:
    """Return the path as it is routed, without the secret in it."""
    path = REPEATED_SLASHES.sub("/", path)
    secret_path = next((prefix for prefix in SECRET_PATHS if path.startswith(prefix)), None)
    return path if secret_path is None else f"{secret_path}…"


def job_id_in(message: Message) -> str | None:
    """Return the job that the head of a response names; None if it names none."""
    headers = dict(message["headers"])
    if (job_id := headers.get(JOB_HEADER)) is not None:
        return job_id.decode()
    _, marker, job_id = headers.get(LOCATION, b"").rpartition(JOB_PATH)
    return job_id.decode() if marker else None
