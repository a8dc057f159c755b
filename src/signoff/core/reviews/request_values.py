"""Requests as conditions of policies read them."""

from collections.abc import Callable, Collection
from typing import Any

import msgspec

from signoff.core.estimate import estimate_tokens
from signoff.core.job import Job
from signoff.errors import BadRequest


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """A request, as far as it is known before its model is asked."""

    path: str
    """Endpoint of the request."""
    target: str
    """Name that the request is for."""
    model: str
    """Name of the registered model or pipeline behind it."""
    door: str
    """Name of the door that took the request."""
    body: bytes
    """Request, as JSON."""
    metadata: bytes = b"null"
    """JSON of the caller's own."""
    prompt: str | None = None
    """Name of the prompt that the body was rendered from; None for none."""
    user: str = ""
    """Email of the caller; empty if it is not known."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of a model or pipeline by which policies apply."""
        return (self.target,) if self.model.endswith("*") else (self.target, self.model)


def context_of(job: Job, user: str = "") -> RequestContext:
    """Return the context of the request of `job`, whose owner has the email `user`."""
    return RequestContext(
        path=job.path,
        target=job.target,
        model=job.model,
        door=job.door,
        body=job.body,
        metadata=b"null" if job.parent_id is not None else job.metadata,
        prompt=job.prompt,
        user=user,
    )


def request_values(context: RequestContext, reads: Collection[str]) -> dict[str, Any]:
    """Return the fields of `request` that are among `reads`, such as `request.user`."""
    sources: dict[str, Callable[[], Any]] = {
        "path": lambda: context.path,
        "model": lambda: context.model,
        "target": lambda: context.target,
        "prompt": lambda: context.prompt,
        "door": lambda: context.door,
        "user": lambda: context.user,
        "tags": lambda: _tags(context),
        "tokens": lambda: _tokens(context),
    }
    return {name: source() for name, source in sources.items() if f"request.{name}" in reads}


class _Metadata(msgspec.Struct):
    metadata: Any = None


def _tags(context: RequestContext) -> Any:
    """Return the caller's own metadata: of the job, else of the request; an empty object for none."""
    try:
        own = msgspec.json.decode(context.metadata)
        return own or msgspec.json.decode(context.body, type=_Metadata).metadata or {}
    except (ValueError, RecursionError):
        return {}


def _tokens(context: RequestContext) -> int | None:
    """Return the estimated tokens of the request and its answer; None if they cannot be estimated."""
    try:
        estimate = estimate_tokens(context.path, context.body)
    except BadRequest:
        return None
    return estimate.prompt + estimate.output
