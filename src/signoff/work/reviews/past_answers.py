"""Past answers of models, with the stored signals and the decisions on them. No model and no webhook is asked again."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any

import msgspec

from signoff.core.dialects.answer import Answer
from signoff.core.filters import JobFilter
from signoff.core.job import Decision, Event, Job
from signoff.core.reviews.answer_digest import digest_answer
from signoff.core.reviews.coin import Coin
from signoff.core.reviews.compiled import CompiledPolicy, PolicyIndex
from signoff.core.reviews.copies import is_planted
from signoff.core.reviews.request_values import context_of
from signoff.core.reviews.rules import ReviewPolicy
from signoff.work.reviews.signals import AnswerSignals
from signoff.work.services import Services

MAX_LAST = 5000
# Jobs of other targets are skipped; after this number of jobs, the search ends.
MAX_EXAMINED = 20_000
PAGE = 200


class PastAnswer(msgspec.Struct, frozen=True):
    """An answer of a past job, and what became of it."""

    job: Job
    """The job."""
    body: bytes
    """The answer as the model gave it, before any edit."""
    signals: Mapping[str, Any]
    """Values of signals that were stored when the answer was judged, by full name."""
    is_reviewed: bool = False
    """True if a person has decided on it."""
    is_wrong: bool = False
    """True if that person rejected it, sent it back, or edited more than what is harmless."""
    coin: Coin | None = None
    """Coin by which it was held; None if it was not held, or by a rule, a closed gate or a review mode."""


async def past_answers(services: Services, compiled: CompiledPolicy, last: int) -> AsyncIterator[list[PastAnswer]]:
    """Yield the answers of each past job of the policy's target, newest first, until there are `last` of them.

    A job that was skipped has none; the search ends after MAX_EXAMINED.
    """
    index, after_id, number, examined = PolicyIndex([compiled]), None, 0, 0
    while True:
        page = await services.store.jobs.list(JobFilter(after_id=after_id, limit=PAGE, newest_first=True))
        for job in page:
            if number >= last:
                return
            is_of_target = bool(index.find_all(context_of(job).names, job.prompt))
            answers = await _answers_of(services, compiled.policy, job) if is_of_target else []
            number, examined = number + len(answers), examined + max(1, len(answers))
            yield answers
        if not page or not page.may_continue or examined >= MAX_EXAMINED:
            return
        after_id = page[-1].id


async def _answers_of(services: Services, policy: ReviewPolicy, job: Job) -> list[PastAnswer]:
    """Return the answers of a job: of each review round, or else the only one. A planted item is none of a model."""
    if is_planted(job):
        return []
    if job.round == 0:
        signals = {} if job.ruling is None else job.ruling.signals
        is_answer = job.response is not None and job.cache != "hit"
        return [PastAnswer(job, job.response or b"", signals)] if is_answer else []
    return list(_rounds(policy, job, await services.store.jobs.events(job.id)))


def _rounds(policy: ReviewPolicy, job: Job, events: list[Event]) -> Iterator[PastAnswer]:
    """Yield the answer of each round as the model gave it, before any edit."""
    held: PastAnswer | None = None
    decision: Decision | None = None
    for event in events:
        match event.verb:
            case "hold" | "present":
                held, decision = _held_answer(job, event), None
            case "decide":
                decision = msgspec.convert(event.data.get("decision"), Decision)
            case "undo":
                decision = None
            case "approve" | "reject" | "redo" if held is not None:
                yield _decided(policy, held, event, decision)
                held = None
            case "cancel" if held is not None and held.coin is not None and held.coin.is_audit:
                held = None  # the copy that reviewers got has the verdict
            case _:
                pass
    if held is not None:
        yield held


def _held_answer(job: Job, event: Event) -> PastAnswer:
    ruling: dict[str, Any] = event.data.get("ruling") or {}
    coin = None if ruling.get("coin") is None else msgspec.convert(ruling["coin"], Coin)
    body = msgspec.json.encode(event.data.get("response"))
    return PastAnswer(job, body, ruling.get("signals") or {}, coin=coin if coin is not None and coin.is_look else None)


def _decided(policy: ReviewPolicy, held: PastAnswer, event: Event, decision: Decision | None) -> PastAnswer:
    """Return the answer with what a person decided, by the event with which that took effect."""
    if decision is None:
        return held
    is_wrong = event.verb != "approve"
    if not is_wrong and "response" in event.data:
        harmless = () if policy.budget is None else policy.budget.harmless
        final = msgspec.json.encode(event.data["response"])
        is_wrong = digest_answer(final, harmless) != digest_answer(held.body, harmless)
    return msgspec.structs.replace(held, is_reviewed=True, is_wrong=is_wrong)


class StoredSignals(AnswerSignals):
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


async def _perform_nothing(_services: Services, _job: Job) -> bytes | None:
    raise RuntimeError("A dry run must not perform a job.")
