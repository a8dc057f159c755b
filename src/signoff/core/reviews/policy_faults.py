"""Faults of a policy that an admin saves, beside those of its conditions."""

import re

from signoff.core.model import is_name
from signoff.core.reviews.budget_period import check_budget
from signoff.core.reviews.compiled import CompiledPolicy
from signoff.core.reviews.policy import Escalation
from signoff.core.reviews.rules import Action, PolicyDraft

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_RULES = 100
MAX_MESSAGE_LENGTH = 1000
MAX_VOTES = 9
MAX_DEADLINE_SECONDS = 366 * 86_400
MAX_WEBHOOK_SECONDS = 30


def policy_fault(compiled: CompiledPolicy) -> str | None:
    """Return an error message for the first value that is not valid; None for a valid policy."""
    policy = compiled.policy
    if NAME.fullmatch(policy.name) is None:
        return (
            "`name` must be 1 to 100 letters, digits, dots, dashes and underscores, and begin with a letter or digit."
        )
    if not is_name(policy.target) or "*" in policy.target[:-1]:
        return "`target` must be the name of a model, prompt or pipeline; * only at its end."
    if len(policy.rules) > MAX_RULES:
        return f"`rules` must be at most {MAX_RULES} (got {len(policy.rules)})."
    places = [(f"rules[{number}]", rule) for number, rule in enumerate(policy.rules)]
    faults = (_action_fault(place, action) for place, action in [*places, ("default", policy.default)])
    return next((fault for fault in faults if fault), None) or _signal_fault(compiled) or _budget_fault(policy)


def _action_fault(place: str, action: Action) -> str | None:
    then = action.then
    if (then == "ask") != (action.ask is not None) or (action.ask is not None and not is_name(action.ask)):
        return f"`{place}.ask` must be the name of a model if `then` is ask, and be left out otherwise."
    if (then == "audit") != (action.audit is not None) or not 0 < (action.audit or 1) <= 1:
        return (
            f"`{place}.audit` must be a probability above 0 and up to 1 if `then` is audit, and be left out otherwise."
        )
    if then != "reject" and (action.code is not None or action.message is not None):
        return f"`{place}.code` and `{place}.message` are for `then` reject; remove them."
    if action.code is not None and CODE.fullmatch(action.code) is None:
        return f"`{place}.code` must be up to 64 lower-case letters, digits and underscores (got {action.code!r})."
    if action.message is not None and not 0 < len(action.message) <= MAX_MESSAGE_LENGTH:
        return f"`{place}.message` must be 1 to {MAX_MESSAGE_LENGTH} characters."
    return _review_fault(place, action)


def _review_fault(place: str, action: Action) -> str | None:
    """Return a fault of what a rule says about the review of the answers that it holds."""
    of_review = ("queue", "priority", "deadline_seconds", "on_deadline")
    if action.then not in {"hold", "audit"}:
        names = [name for name in of_review if getattr(action, name) is not None] + ["votes"] * (action.votes != 1)
        return f"`{place}.{names[0]}` is for `then` hold or audit; remove it." if names else None
    return _hold_fault(place, action)


def _hold_fault(place: str, action: Action) -> str | None:
    escalate = action.on_deadline.escalate if isinstance(action.on_deadline, Escalation) else None
    seconds = action.deadline_seconds
    for member, queue in (("queue", action.queue), ("on_deadline.escalate", escalate)):
        if queue is not None and not is_name(queue):
            return f"`{place}.{member}` must be the name of a review queue (got {queue!r})."
    if action.priority is not None and action.priority not in range(10):
        return f"`{place}.priority` must be from 0 to 9 (got {action.priority})."
    if action.votes not in range(1, MAX_VOTES + 1):
        return f"`{place}.votes` must be from 1 to {MAX_VOTES} (got {action.votes})."
    if seconds is not None and not 0 < seconds <= MAX_DEADLINE_SECONDS:
        return f"`{place}.deadline_seconds` must be above 0, and at most {MAX_DEADLINE_SECONDS} (got {seconds})."
    if action.then == "audit" and action.on_deadline not in {None, "stay"}:
        return f"`{place}.on_deadline` must be stay for an audit, because a deadline decides no audit."
    return None


def _signal_fault(compiled: CompiledPolicy) -> str | None:
    """Return a fault of the sources of signals."""
    policy = compiled.policy
    for name in ("judge", "moderation", "webhook"):
        if f"signals.{name}" in compiled.reads and getattr(policy, name) is None:
            return f"`{name}` must be set, as a rule reads `signals.{name}`."
    for name, source in (("judge", policy.judge), ("moderation", policy.moderation)):
        if source is not None and not is_name(source):
            return f"`{name}` must be the name of a prompt or a model (got {source!r})."
    webhook = policy.webhook
    if webhook is not None and not 0 < webhook.timeout_seconds <= MAX_WEBHOOK_SECONDS:
        return (
            f"`webhook.timeout_seconds` must be above 0, and at most {MAX_WEBHOOK_SECONDS} "
            f"(got {webhook.timeout_seconds})."
        )
    return None


def _budget_fault(policy: PolicyDraft) -> str | None:
    try:
        check_budget(policy)
    except ValueError as error:
        return str(error)
    return None
