"""The span of a request: in the trace of the caller, if it has one, and in its own otherwise."""

from signoff.core.api_paths import KNOWN
from signoff.doors.access_log import job_id_in, public_path
from signoff.doors.http import ASGIApp, Message, Receive, Scope, Send, header
from signoff.infra.tracing import Tracer
from signoff.work.tracing import TRACE_HEADERS

FIRST_SERVER_ERROR = 500
# Paths that name spans. Other paths have ids, so each would be a name of its own.
ROUTES = KNOWN | {"/enqueue", "/generate", "/chat_completion", "/api/jobs", "/v2/rerank"}


async def serve_and_trace(tracer: Tracer, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the request by `app`, in a span."""
    method, path = scope["method"], public_path(scope["path"])
    headers = {name: value for name in TRACE_HEADERS if (value := header(scope, name.encode())) is not None}
    route = {"http.route": path} if path in ROUTES else {}
    attributes = {"http.request.method": method, "url.path": path, **route}
    with tracer.span(f"{method} {path}" if route else method, "server", attributes, headers=headers) as span:

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                status, job_id = message["status"], job_id_in(message)
                span.set({"http.response.status_code": status} | ({} if job_id is None else {"signoff.job.id": job_id}))
                if status >= FIRST_SERVER_ERROR:
                    span.fail(str(status))
            await send(message)

        await app(scope, receive, send_and_note)
