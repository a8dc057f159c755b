"""Named review policies: rules for the answers of a target, in numbered versions."""

from typing import Literal

import msgspec

from signoff.core.reviews.answer_digest import Harmless
from signoff.core.reviews.policy import Escalation, OnDeadline

# Every process has the current version of each policy in memory.
MAX_POLICIES = 500
ActionKind = Literal["pass", "hold", "reject", "ask", "audit"]


class Action(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Treatment of an answer that a rule matches."""

    then: ActionKind = "pass"
    """`pass` delivers it, `hold` lets a person decide, `reject` fails the job, `ask` asks another model first, and
    `audit` delivers it and lets a person look with the probability `audit`."""
    queue: str | None = None
    """Review queue of a held answer; None for the queue of all reviewers."""
    priority: int | None = None
    """Priority of a held answer on the desk, from 0 to 9; None for that of the job."""
    deadline_seconds: float | None = None
    """Time for a verdict, from the hold on; None for that of the server's settings."""
    on_deadline: OnDeadline | Escalation | None = None
    """Outcome at the deadline; None for that of the server's settings."""
    votes: int = 1
    """Number of reviewers who must agree."""
    ask: str | None = None
    """Name of the model to ask; only for `ask`."""
    audit: float | None = None
    """Probability that a person looks, from 0 to 1; only for `audit`."""
    code: str | None = None
    """Error code of a rejected answer; None for `rejected`."""
    message: str | None = None
    """Message of a rejected answer for its caller; None for a general one."""


class Rule(Action, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename={"if_": "if"}):
    """A condition, and the treatment of an answer that meets it."""

    if_: str
    """Expression in the Common Expression Language (CEL) with a true or false result."""


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An error budget: of `answers` that leave without a review, at most the share `share` is wrong."""

    answers: int
    """Number of answers of a period that leave without a review."""
    share: float
    """Largest share of them that may be wrong, between 0 and 1."""
    confidence: float = 0.95
    """Confidence that at most `share` of the answers of a period are wrong, between 0 and 1."""
    audit_rate: float
    """Probability with which a person looks at an answer that the rules let pass, between 0 and 1."""
    harmless: tuple[Harmless, ...] = ()
    """Kinds of edits that do not make an answer wrong, besides those of whitespace."""
    planted_rate: float = 0
    """Probability with which a held answer brings a planted item to the desk, from 0 to 1: a copy with a known error,
    which tests the reviewers."""
    per: str | None = None
    """Attribute whose values have a budget each, `user`, `prompt_version` or `metadata.NAME`; None for one for all."""


class GuardrailWebhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A guardrail of the operator's own that gets an answer before it leaves."""

    url: str
    """Address that gets the request and the answer, signed like other webhooks."""
    timeout_seconds: float = 5
    """Time for its answer."""


class PolicyDraft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named policy as an admin writes it."""

    target: str
    """Name of a model, prompt or pipeline; a name that ends in `*` stands for all with that prefix."""
    rules: tuple[Rule, ...] = ()
    """Rules in order; the first one whose condition is met decides."""
    default: Action = Action()
    """Treatment of an answer that no rule matches."""
    budget: Budget | None = None
    """Error budget of the answers that the rules let pass; None for none."""
    judge: str | None = None
    """Name of the prompt or model that gives the score `signals.judge`; None for none."""
    moderation: str | None = None
    """Name of the moderation model that gives `signals.moderation`; None for none."""
    webhook: GuardrailWebhook | None = None
    """Guardrail that gives `signals.webhook`; None for none."""


class ReviewPolicy(PolicyDraft, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version of a named policy, as it is stored."""

    name: str
    """Unique name of the policy."""
    version: int = 0
    """Number of the version, from 1; the store sets it."""
    user_id: int = 0
    """User who saved the version; the calls of its judge and its moderation model are theirs."""
    token_id: int = 0
    """Token that the version was saved with."""
    created_at: int = 0
    """Time at which the version was saved, in microseconds since 1970, UTC; the store sets it."""
