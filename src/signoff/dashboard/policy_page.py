"""The page of one review policy: its rules in words, its text, what a draft would do, and its error budget."""

import re
from collections import Counter
from typing import Any
from urllib.parse import quote

import msgspec
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.json_position import find_position, find_syntax_error
from signoff.core.reviews.compiled import policy_from_draft
from signoff.core.reviews.policy import Escalation
from signoff.core.reviews.rules import Action, PolicyDraft, ReviewPolicy
from signoff.dashboard.budget import WHOLE, BudgetQuery, budget_view
from signoff.dashboard.difference import line_difference
from signoff.dashboard.edit_conflict import edit_conflict
from signoff.dashboard.shell import POLICIES, SECOND_US, format_unit, page, with_status
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, scope_of
from signoff.doors.http import parse_form, parse_json
from signoff.errors import SignoffError, VersionConflict
from signoff.work.reviews.dry_run import DryRun
from signoff.work.reviews.library import get_policy, list_policy_versions
from signoff.work.reviews.recommend import Recommendation, draft_at
from signoff.work.reviews.ruling_count import CountedOutcome, RulingCount, count_rulings
from signoff.work.services import Services

MAX_VERSIONS = 20
DRY_RUNS = (100, 1000, 5000)
# Members of a policy that are no part of its draft.
_STORED = {"name", "version", "user_id", "token_id", "created_at"}
# Paths in error messages: `$.rules[0].then` of the decoder, and `rules[0].if` of the checks of policies.
_PATH = re.compile(r"`\$?\.?((?:rules|default|budget|target|judge|moderation|webhook)\b[\w.\[\]]*)`")
TITLES: dict[CountedOutcome, str] = {"pass": "passed", "hold": "held", "reject": "rejected", "audit": "audited"}


class PolicyForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the forms of a policy."""

    body: str = ""
    """JSON of the policy."""
    name: str = ""
    """Name, in the form of a new policy."""
    expected: str = ""
    """Version that applied when the form was shown; 0 for none."""
    last: str = "1000"
    """Number of past answers of a dry run."""


async def policy_page(  # noqa: PLR0913 -- the request, its caller, and what the page shows
    request: AnyRequest,
    services: Services,
    caller: Caller,
    name: str,
    *,
    version: int | None = None,
    form: PolicyForm | None = None,
    error: SignoffError | None = None,
    trial: DryRun | None = None,
    place: BudgetQuery = WHOLE,
    recommended: Recommendation | None = None,
) -> Template:
    """Return the page of a policy: a version of it, by default the one that applies, and what `form` or `trial` add."""
    versions = await list_policy_versions(services, caller, name, before=None, limit=MAX_VERSIONS)
    current = await _current(services, caller, name)
    shown_version = version or (current or versions[0]).version
    policy = await get_policy(services, caller, name, shown_version)
    before = None if policy.version == 1 else await get_policy(services, caller, name, policy.version - 1)
    counts = await count_rulings(services, caller)
    present_version, conflict = current.version if current else 0, None
    if form is not None and isinstance(error, VersionConflict):
        texts = policy_text(current or versions[0]), form.body
        conflict = await edit_conflict(services, caller, f"policy:{name}", present_version, texts)
        error = conflict.error
    shown = page(
        request,
        services,
        caller,
        "policy.html",
        POLICIES.name,
        policy=policy,
        is_current=current is not None and current.version == policy.version,
        is_deleted=current is None,
        versions=versions,
        difference=[] if before is None else line_difference(policy_text(before), policy_text(policy)),
        rules=_rules(policy, counts),
        counts=counts,
        outcomes=TITLES,
        form=form or PolicyForm(body=policy_text(policy)),
        expected=str(present_version) if form is None or conflict else form.expected,
        conflict=conflict,
        error=error and (error.message if form is None else with_position(form.body, error)),
        trial=trial and _sentences(trial, policy if form is None else draft_of(form)),
        dry_runs=DRY_RUNS,
        recommended=recommended,
        drafts={} if recommended is None else _drafts(services, policy, recommended),
        budget=None if current is None or current.budget is None else await budget_view(services, caller, name, place),
    )
    return with_status(shown, error)


def _drafts(services: Services, policy: ReviewPolicy, recommended: Recommendation) -> dict[float, str]:
    """Return the text of the policy with the recommended rule, by threshold."""
    drafts = {
        row.threshold: draft_at(services, policy, recommended.score, row.threshold) for row in recommended.thresholds
    }
    return {threshold: policy_text(policy_from_draft(draft, policy.name)) for threshold, draft in drafts.items()}


async def _current(services: Services, caller: Caller, name: str) -> ReviewPolicy | None:
    """Return the version that applies; None if the policy was deleted, whose versions stay."""
    try:
        return await get_policy(services, caller, name)
    except SignoffError as error:
        if error.status == 404:
            return None
        raise


async def read_form(request: AnyRequest) -> PolicyForm:
    """Return the fields of a form of this server. Raises Forbidden, BadRequest."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), PolicyForm, "policy")
    return msgspec.structs.replace(form, body=form.body.replace("\r\n", "\n"))


def draft_of(form: PolicyForm) -> PolicyDraft:
    """Return the policy in a form. Raises BadRequest."""
    return parse_json(form.body.encode(), PolicyDraft, "policy")


def policy_address(name: str) -> str:
    """Return the path of the page of a policy."""
    return f"{POLICIES.path}/{quote(name, safe='')}"


def with_position(text: str, error: SignoffError) -> str:
    """Return the message of an error in the JSON of a policy, with the line and the column."""
    if (place := find_syntax_error(text)) is not None:
        line, column = place
        return f"Line {line}, column {column}: this is not JSON. {error.message}"
    if (match := _PATH.search(error.message)) is not None:
        line, column = find_position(text, match[1])
        return f"Line {line}, column {column}: {error.message}"
    return error.message


def policy_text(policy: ReviewPolicy) -> str:
    """Return the JSON of a policy as an admin writes it, without what has its default."""
    members = {name: value for name, value in msgspec.to_builtins(policy).items() if name not in _STORED}
    members |= {
        "rules": [{"if": rule.if_, "then": rule.then} | _brief(rule) for rule in policy.rules],
        "default": {"then": policy.default.then} | _brief(policy.default),
        "budget": policy.budget and _brief(policy.budget),
        "webhook": policy.webhook and _brief(policy.webhook),
    }
    shown = {name: value for name, value in members.items() if value is not None}
    return msgspec.json.format(msgspec.json.encode(shown), indent=2).decode()


def _brief(value: msgspec.Struct) -> dict[str, Any]:
    """Return the members of a part of a policy that are set, with whole numbers as such."""
    members: dict[str, Any] = msgspec.to_builtins(value)
    numbers = {name: int(each) for name, each in members.items() if isinstance(each, float) and each.is_integer()}
    return {name: each for name, each in (members | numbers).items() if each is not None and each != []}


def _rules(policy: ReviewPolicy, counts: RulingCount) -> list[dict[str, Any]]:
    """Return the rules in order, the default last, in words and with the latest outcomes of this version."""
    rules: list[tuple[int | None, Action]] = [*enumerate(policy.rules), (None, policy.default)]
    return [
        {
            "number": "" if number is None else number + 1,
            "condition": None if number is None else policy.rules[number].if_,
            "words": action_words(action),
            "then": action.then,
            "counts": counts.rulings.get((policy.name, policy.version, number), Counter()),
        }
        for number, action in rules
    ]


def action_words(action: Action) -> str:
    """Return what happens to an answer, as a sentence without its end.

    >>> action_words(Action(then="hold", queue="law", votes=2, deadline_seconds=3600, on_deadline="reject"))
    'hold for a person in the queue law; 2 reviewers must agree; without a verdict within 1 h, it is rejected'
    """
    words = {
        "pass": "pass",
        "hold": "hold for a person",
        "reject": f"reject as {action.code or 'rejected'}" + (f", saying “{action.message}”" if action.message else ""),
        "ask": f"ask {action.ask} as well, then judge its answer",
        "audit": f"pass, but a person looks at {(action.audit or 0):.3g} of them",
    }[action.then]
    parts = [words + (f" in the queue {action.queue}" if action.queue else "")]
    parts += [f"priority {action.priority}"] if action.priority is not None else []
    parts += [f"{action.votes} reviewers must agree"] if action.votes > 1 else []
    if action.deadline_seconds is not None or action.on_deadline is not None:
        parts.append(_deadline_words(action))
    return "; ".join(parts)


def _deadline_words(action: Action) -> str:
    within = (
        "" if action.deadline_seconds is None else f" within {format_unit(round(action.deadline_seconds * SECOND_US))}"
    )
    match action.on_deadline:
        case Escalation(escalate=queue):
            outcome = f"it moves to the queue {queue}"
        case "approve" | "reject" as verdict:
            outcome = f"it is {verdict.removesuffix('e')}ed"
        case _:
            outcome = "it stays in review"
    return f"without a verdict{within}, {outcome}"


def _sentences(result: DryRun, policy: PolicyDraft) -> dict[str, Any]:
    """Return the result of a dry run in words."""
    shares = [("would have passed", result.passed, "ok"), ("would have been held", result.held, "hold")]
    shares += [("would have been rejected", result.rejected, "bad"), ("would have asked another", result.consulted, "")]
    shares = [share for share in shares if share[1]]
    by_rule = [(f"rule {number + 1}", result.rules.get(str(number), 0)) for number in range(len(policy.rules))]
    by_rule.append(("default", result.rules.get("default", 0)))
    return {"result": result, "shares": shares, "rules": by_rule}
