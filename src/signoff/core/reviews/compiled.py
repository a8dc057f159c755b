"""Named policies with compiled conditions, the policy that applies to a name, and what a rule says."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from signoff.core.reviews.conditions import Condition
from signoff.core.reviews.expression import BadExpressionError
from signoff.core.reviews.policy import PolicyVersion
from signoff.core.reviews.rules import Action, PolicyDraft, ReviewPolicy
from signoff.core.reviews.ruling import Ruling

# Values that can differ between requests that share a cached answer.
OF_CALLER = frozenset({"request.user", "request.door", "request.tags"})
HOLD = Action(then="hold")


class BadRuleError(ValueError):
    """A condition that cannot be compiled; the message names the rule and the position."""


class Match(NamedTuple):
    """The action that a policy takes on an answer."""

    action: Action
    """Treatment of the answer."""
    rule: int | None = None
    """Position of the rule that matched, from 0; None for the default."""
    is_failure: bool = False
    """True if the condition of the rule failed, so that the answer is held."""


class CompiledPolicy:
    """A version of a policy, ready to evaluate.

    With `is_stored`, a condition that this version of the program cannot compile fails when it is evaluated; else the
    constructor raises BadRuleError.
    """

    def __init__(self, policy: ReviewPolicy, *, is_stored: bool = False) -> None:
        self.policy = policy
        self.conditions = [_compiled(policy, number, is_stored=is_stored) for number in range(len(policy.rules))]
        reads = [condition.reads for condition in self.conditions if condition is not None]
        self.reads = frozenset[str]().union(*reads)
        """Values that the conditions read, such as `answer.text` or `cost`."""

    @property
    def version(self) -> PolicyVersion:
        """Name and version of the policy."""
        return PolicyVersion(self.policy.name, self.policy.version)

    @property
    def is_cacheable(self) -> bool:
        """True if answers under this policy may be cached."""
        actions = {action.then for action in (*self.policy.rules, self.policy.default)}
        return self.policy.budget is None and not actions & {"audit", "ask"} and not self.reads & OF_CALLER

    def match_request(self, values: Mapping[str, Any]) -> Match | None:
        """Return what the request alone decides: the first rule that matches, if none before it reads the answer.

        None if the answer must be looked at, also to audit it or to ask another model about it.
        """
        for number, condition in enumerate(self.conditions):
            if condition is None or not all(name.startswith("request.") for name in condition.reads):
                return None
            match = self.match_rule(number, values)
            if match is not None:
                return self._unless_judged(match)
        return self._unless_judged(Match(self.policy.default))

    def match_rule(self, number: int, values: Mapping[str, Any]) -> Match | None:
        """Return the action of a rule if its condition is met, or fails; else None."""
        condition, rule = self.conditions[number], self.policy.rules[number]
        try:
            is_met = condition is None or condition.is_met(values)
        except Exception:  # noqa: BLE001 -- whatever fails, a person looks
            return Match(HOLD, number, is_failure=True)
        if condition is None:
            return Match(HOLD, number, is_failure=True)
        return Match(rule, number) if is_met else None

    def _unless_judged(self, match: Match) -> Match | None:
        then = match.action.then
        if then in {"ask", "audit"} or (then == "pass" and self.policy.budget is not None):
            return None
        return match


def _compiled(policy: ReviewPolicy, number: int, *, is_stored: bool) -> Condition | None:
    try:
        return Condition(policy.rules[number].if_)
    except BadExpressionError as error:
        if is_stored:
            return None
        raise BadRuleError(f"`rules[{number}].if`: {error}") from None


def ruling_of(policy: ReviewPolicy, match: Match, signals: dict[str, Any]) -> Ruling:
    """Return what `match` says, as it is stored with the job."""
    action = match.action
    outcome: Literal["pass", "hold", "reject"]
    match action.then:
        case "pass" | "audit":
            outcome = "pass"
        case "hold" | "ask":
            outcome = "hold"
        case "reject":
            outcome = "reject"
    return Ruling(
        outcome=outcome,
        policy=policy.name,
        version=policy.version,
        rule=match.rule,
        signals=signals,
        audit=action.audit,
        queue=action.queue,
        priority=action.priority,
        deadline_seconds=action.deadline_seconds,
        on_deadline=action.on_deadline,
        votes=action.votes,
        code=action.code,
        message=action.message,
    )


class PolicyIndex:
    """The policies that apply, by their targets."""

    def __init__(self, policies: Iterable[CompiledPolicy]) -> None:
        self._by_target = {each.policy.target: each for each in policies}
        prefixes = [target for target in self._by_target if target.endswith("*")]
        self._prefixes = sorted(prefixes, key=len, reverse=True)

    def __bool__(self) -> bool:
        return bool(self._by_target)

    def policies(self) -> list[ReviewPolicy]:
        """Return all of them, ordered by target."""
        return [self._by_target[target].policy for target in sorted(self._by_target)]

    def find(self, name: str) -> CompiledPolicy | None:
        """Return the policy for a model or pipeline: of exactly this target, else of the longest prefix."""
        if name in self._by_target:
            return self._by_target[name]
        prefix = next((each for each in self._prefixes if name.startswith(each[:-1])), None)
        return None if prefix is None else self._by_target[prefix]

    def find_all(self, names: Sequence[str | None], prompt: str | None = None) -> list[CompiledPolicy]:
        """Return the policies for all `names`, and that for `prompt` unless its target is `*`."""
        each = [self.find(name) for name in names if name is not None]
        of_prompt = None if prompt is None else self.find(prompt)
        if of_prompt is not None and of_prompt.policy.target != "*":
            each.append(of_prompt)
        return list({policy.version: policy for policy in each if policy is not None}.values())


def policy_from_draft(draft: PolicyDraft, name: str, *, user_id: int = 0, token_id: int = 0) -> ReviewPolicy:
    """Return a version of the policy `name` with the content of `draft`, saved by this user with this token."""
    content: dict[str, Any] = msgspec.structs.asdict(draft)
    return ReviewPolicy(name=name, user_id=user_id, token_id=token_id, **content)
