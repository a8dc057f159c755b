"""Dry run: what a policy would have said about past answers, from what is stored. It asks no model and no webhook."""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.dialects.answer import Answer
from signoff.core.filters import JobFilter
from signoff.core.job import Decision, Event, Job
from signoff.core.reviews.compiled import CompiledPolicy, Match, PolicyIndex, with_name
from signoff.core.reviews.request_values import context_of
from signoff.core.reviews.rules import PolicyDraft, ReviewPolicy
from signoff.errors import BadRequest
from signoff.work.reviews.judge import match_answer
from signoff.work.reviews.library import check_policy, get_policy
from signoff.work.reviews.signals import AnswerSignals
from signoff.work.services import Services

MAX_LAST = 5000
# Jobs of other targets are skipped; after this number of jobs, the search ends.
MAX_EXAMINED = 20_000
PAGE = 200


class DryRun(msgspec.Struct, kw_only=True):
    """Result of a dry run."""

    policy: str
    """Name of the policy."""
    answers: int = 0
    """Number of past answers that were judged."""
    examined: int = 0
    """Sum of `passed`, `consulted`, `held`, `rejected` and `skipped`."""
    skipped: int = 0
    """Number of past jobs of other targets, or without an answer of a model."""
    passed: int = 0
    """Answers that would have left at once, those of `audited` included."""
    audited: int = 0
    """Answers that would have left, but for those that a person audits."""
    consulted: int = 0
    """Answers about which another model would have been asked."""
    held: int = 0
    """Answers that would have been held."""
    rejected: int = 0
    """Answers that would have been rejected."""
    failed: int = 0
    """Answers among `held` for which a condition failed, such as one about a missing signal."""
    rules: dict[str, int] = {}
    """Answers by the position of the rule that matches; `default` for none."""
    reviewed: int = 0
    """Answers that a person has decided on."""
    wrong: int = 0
    """Answers among `reviewed` that were edited, rejected or sent back."""
    wrong_passed: int = 0
    """Answers among `wrong` that the policy would have let pass."""
    missing: dict[str, int] = {}
    """Number of answers, by signal, whose value is not stored, so that it counted as null."""


class PastAnswer(msgspec.Struct, frozen=True):
    """An answer of a past job, and what became of it."""

    job: Job
    body: bytes
    signals: Mapping[str, Any]
    """Values of signals that were stored when it was judged."""
    is_reviewed: bool = False
    is_wrong: bool = False


async def dry_run(
    services: Services, caller: Caller, name: str, *, last: int, draft: PolicyDraft | None = None
) -> DryRun:
    """Judge the `last` answers of the policy's target by `draft`, or else by the policy as it is.

    Raises Forbidden, NotFound, and BadRequest for a draft that is not valid.
    """
    check_admin(caller)
    if not 1 <= last <= MAX_LAST:
        raise BadRequest(f"`last` must be from 1 to {MAX_LAST} (got {last}).")
    if draft is None:
        compiled = CompiledPolicy(await get_policy(services, caller, name), is_stored=True)
    else:
        compiled = check_policy(services, with_name(draft, name))
    result, index, after_id = DryRun(policy=name, rules={}, missing={}), PolicyIndex([compiled]), None
    while result.answers < last and result.examined < MAX_EXAMINED:
        page = await services.store.jobs.list(JobFilter(after_id=after_id, limit=PAGE, newest_first=True))
        for job in page:
            if result.answers >= last:
                break
            is_of_target = bool(index.find_all(context_of(job).names, job.prompt))
            answers = await _answers_of(services, job) if is_of_target else []
            result.skipped += not answers
            result.examined += max(1, len(answers))
            await _judge(services, compiled, answers, result)
        if not page or not page.may_continue:
            break
        after_id = page[-1].id
    return result


async def _judge(services: Services, compiled: CompiledPolicy, answers: Sequence[PastAnswer], result: DryRun) -> None:
    """Count what the policy says about the answers of one job."""
    for answer in answers:
        signals = _StoredSignals(services, answer)
        match = await match_answer(compiled, signals)
        _count(result, answer, match)
        for name in signals.missing:
            result.missing[name] = result.missing.get(name, 0) + 1


async def _answers_of(services: Services, job: Job) -> list[PastAnswer]:
    """Return the answers of a job: of each review round, or else the only one."""
    if job.round == 0:
        signals = {} if job.ruling is None else job.ruling.signals
        is_answer = job.response is not None and job.cache != "hit"
        return [PastAnswer(job, job.response or b"", signals)] if is_answer else []
    return list(_rounds(job, await services.store.jobs.events(job.id)))


def _rounds(job: Job, events: list[Event]) -> Iterator[PastAnswer]:
    """Yield the answer of each round as the model gave it, before any edit."""
    held: Event | None = None
    decision: Decision | None = None
    for event in events:
        match event.verb:
            case "hold":
                held, decision = event, None
            case "decide":
                decision = msgspec.convert(event.data.get("decision"), Decision)
            case "undo":
                decision = None
            case "approve" | "reject" | "redo" if held is not None:
                yield _past_answer(job, held, decision)
                held = None
            case _:
                pass
    if held is not None:
        yield _past_answer(job, held, None)


def _past_answer(job: Job, held: Event, decision: Decision | None) -> PastAnswer:
    ruling: dict[str, Any] = held.data.get("ruling") or {}
    body = msgspec.json.encode(held.data.get("response"))
    is_wrong = decision is not None and (decision.verdict != "approve" or decision.edit.response is not None)
    return PastAnswer(job, body, ruling.get("signals") or {}, decision is not None, is_wrong)


def _count(result: DryRun, answer: PastAnswer, match: Match) -> None:
    outcomes = Counter[str]({"passed": 0})
    match match.action.then:
        case "pass":
            outcomes["passed"] += 1
        case "audit":
            outcomes.update(["passed", "audited"])
        case "ask":
            outcomes["consulted"] += 1
        case "hold":
            outcomes["held"] += 1
        case "reject":
            outcomes["rejected"] += 1
    outcomes["failed"] += match.is_failure
    outcomes["answers"] += 1
    outcomes["reviewed"] += answer.is_reviewed
    outcomes["wrong"] += answer.is_wrong
    outcomes["wrong_passed"] += answer.is_wrong and outcomes["passed"] > 0
    for name, number in outcomes.items():
        setattr(result, name, getattr(result, name) + number)
    rule = "default" if match.rule is None else str(match.rule)
    result.rules[rule] = result.rules.get(rule, 0) + 1


class _StoredSignals(AnswerSignals):
    """Signals of a past answer. Those that would need a call are taken from what was stored when it was judged."""

    def __init__(self, services: Services, answer: PastAnswer) -> None:
        user = str(answer.signals.get("request.user", ""))
        super().__init__(services, answer.job, Answer(body=answer.body), user, _perform_nothing)
        self._stored = answer.signals
        self.missing = set[str]()
        """Full names of signals that were read and are not stored."""

    async def values(self, policy: ReviewPolicy, reads: Collection[str]) -> dict[str, Any]:
        """See `AnswerSignals.values`."""
        if "request.user" in reads and "request.user" not in self._stored:
            self.missing.add("request.user")
        return await super().values(policy, reads)

    def _sources(self, policy: ReviewPolicy) -> dict[str, Callable[[], Awaitable[Any]]]:
        sources = super()._sources(policy)
        for name in ("judge", "moderation", "webhook"):
            sources[name] = self._stored_source(name)
        for name in ("logprob_mean", "logprob_min"):
            sources[name] = self._stored_source(name, sources[name])
        return sources

    def _stored_source(
        self, name: str, source: Callable[[], Awaitable[Any]] | None = None
    ) -> Callable[[], Awaitable[Any]]:
        async def read() -> Any:
            full_name = f"signals.{name}"
            value = self._stored.get(full_name)
            if value is None and source is not None:
                value = await source()
            if value is None and full_name not in self._stored:
                self.missing.add(full_name)
            return value

        return read


async def _perform_nothing(_services: Services, _job: Job) -> None:
    raise RuntimeError("a dry run asks nobody")
