"""Answers about models, keys, people, prompts, pipelines, functions and streams."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from signoff.core.model import EndpointConfig, Model
from signoff.core.pipelines.composed import Prompt
from signoff.core.pipelines.function import Function
from signoff.funcs.loading import BrokenFile

# `as` is a keyword of Python.
_As = TypedDict("_As", {"as": Annotated[str | None, msgspec.Meta(description="User whose limits and models apply.")]})


class EndpointAnswer(TypedDict):
    """Endpoint of a model."""

    has_key: bool
    """True if it has a key of its own."""


class EndpointHealth(TypedDict):
    """Health of an endpoint, as the answering process sees it."""

    endpoint: str
    """Address or number of the endpoint."""
    load: int
    """Number of requests in progress."""
    state: str
    """`up`, `resting` during a cooldown, or `waking` after it."""
    resting_until: str | None
    """End of its cooldown."""
    fault: str | None
    """Error that began the cooldown."""
    ok: bool
    """True if it accepts connections."""
    detail: str
    """Explanation for people."""


class ModelHealth(TypedDict):
    """Health of a model."""

    ok: bool
    """True if it can answer."""
    detail: str
    """Explanation for people."""
    waiting: NotRequired[int]
    """Number of requests that wait for a slot."""
    endpoints: NotRequired[list[EndpointHealth]]
    """Health of each endpoint, if there are several."""


class ModelAnswer(TypedDict):
    """Model; its keys are never shown."""

    endpoints: list[EndpointAnswer]
    """Endpoints; empty for a model with one address."""
    has_key: bool
    """True if it has an upstream key."""
    registered: bool
    """False for a model that exists without registration."""
    state: str | None
    """State of its process; null for a model without one."""
    health: NotRequired[ModelHealth]
    """Health; with `health=true`."""


class TestError(TypedDict):
    """Error that a caller of the model would get."""

    code: str
    """Code of the error."""
    status: int
    """HTTP status."""
    message: str
    """Explanation."""


class TestResult(TypedDict):
    """Result of one request to a model."""

    ok: bool
    """True if the model answered."""
    answer: NotRequired[Any]
    """Answer of the model."""
    error: NotRequired[TestError]
    """Error of the model."""
    seconds: float
    """Duration."""


class KeyAnswer(TypedDict):
    """Upstream key; the key itself is never shown."""

    id: int
    """Id of the key."""
    name: str
    """Name of the key."""
    shared: bool
    """True if all users may use it."""
    user_id: int
    """Owner."""
    created_at: str
    """Time at which it was stored."""


class UserAnswer(TypedDict):
    """User."""

    id: int
    """Id of the user."""
    email: str
    """E-mail address."""
    role: Literal["admin", "reviewer", "user"]
    """Role."""
    active: bool
    """False if all tokens of the user are refused."""


class UserErasure(TypedDict):
    """Erasure that has begun."""

    id: int
    """Id of the user."""
    status: Literal["erasing"]
    """`erasing`."""


class TokenAnswer(TypedDict):
    """Token or session; the secret is never shown again."""

    id: int
    """Id of the token."""
    name: str
    """Description of its purpose."""
    role: Literal["admin", "reviewer", "user"]
    """Most that it may do."""
    user_id: int
    """Owner."""
    email: str
    """E-mail address of the owner."""
    created_at: str
    """Time of its creation."""
    expires_at: str | None
    """Time of its end; null for none."""
    last_used_at: str | None
    """Time of its last use, to about a minute."""
    active: bool
    """False if it is refused, because it has expired or its owner is disabled."""
    current: bool
    """True for the token of this request."""


class SessionCount(TypedDict):
    """Sessions that were ended."""

    ended: int
    """Number of sessions and sign-in links."""


class PromptAnswer(TypedDict):
    """Version of a prompt."""

    args: list[str]
    """Names of its placeholders, in the order of their first use."""
    created_at: str
    """Time at which the version was saved."""


class PipelineAnswer(TypedDict):
    """Version of a pipeline."""

    args: list[str]
    """Names of its arguments, in the order of their first use."""
    created_at: str
    """Time at which the version was saved."""


class Difference(TypedDict):
    """Difference of two versions."""

    difference: str
    """Output of `diff -u`; empty if they are equal."""


class FunctionAnswer(TypedDict):
    """Function that pipelines can call."""

    signature: str
    """Call with its parameters."""


class FunctionSync(TypedDict):
    """Result of a registration of functions."""

    success: bool
    """True."""
    created: list[str]
    """Names that were registered."""
    deleted: list[str]
    """Names that were removed."""
    taken: list[str]
    """Names that a prompt or a pipeline has."""
    broken: list[BrokenFile]
    """Errors in files of functions."""


class PipelineParams(TypedDict):
    """Arguments of a pipeline."""

    success: bool
    """True."""
    response: list[str]
    """Names, in the order of their first use."""


class PipelineResult(TypedDict):
    """Result of a pipeline."""

    success: bool
    """True."""
    response: Any
    """Result of its outermost call."""


class StreamAnswer(_As):
    """Stream, with the state of its listener in the answering process."""

    name: str
    """Name of the stream."""
    transport: str
    """Kind of message broker."""
    host: str
    """Host of the message broker."""
    requests: str
    """Topic that requests come from."""
    responses: str
    """Topic that answers are published to."""
    max_handlers: int
    """Maximum number of messages at the same time in a process."""
    backoff_max_seconds: float
    """Maximum wait before the next attempt to connect."""
    declared: str
    """`settings`, or `at run time`."""
    listening: bool
    """True if the answering process listens."""
    trouble: str | None
    """Reason why it does not."""


# Answers with the fields of another type besides their own: that type, and its fields that are not shown.
EXTENDED: dict[type, tuple[type[msgspec.Struct], set[str]]] = {
    EndpointAnswer: (EndpointConfig, {"key_id"}),
    ModelAnswer: (Model, {"key_id"}),
    PromptAnswer: (Prompt, set()),
    PipelineAnswer: (Prompt, {"model"}),
    FunctionAnswer: (Function, {"digest"}),
}
