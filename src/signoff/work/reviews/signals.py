"""Signals: what the conditions of policies read about an answer. Only what a condition names is computed."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

from signoff.core.dialects.answer import Answer
from signoff.core.job import Job
from signoff.core.reviews.answers import AnswerContent, read_answer
from signoff.core.reviews.conditions import check_size
from signoff.core.reviews.logprobs import logprobs_of
from signoff.core.reviews.request_values import context_of, request_values
from signoff.core.reviews.rules import ReviewPolicy
from signoff.core.reviews.schema_check import meets_schema
from signoff.core.reviews.stored_signals import storable_signals
from signoff.work.reviews.consult import judge_score, moderation_of, webhook_answer
from signoff.work.services import Perform, Services

NANODOLLARS = 1_000_000_000


class AnswerSignals:
    """The values about the answer of one job, each computed once for each policy that reads it.

    Args:
        services: The dependencies.
        job: The job, with its usage.
        answer: Its answer.
        user: Email of its owner; empty if no condition reads it.
        perform: How to perform a job, for the calls of judges and moderation models.
    """

    def __init__(self, services: Services, job: Job, answer: Answer, user: str, perform: Perform) -> None:
        self._services = services
        self._job = job
        self._answer = answer
        self._user = user
        self._perform = perform
        self._reading: AnswerContent | None = None
        self._signals: dict[tuple[str, str], Any] = {}
        self.seen = dict[str, Any]()
        """Values that were read, by their full names, as they are stored with the job."""

    async def values(self, policy: ReviewPolicy, reads: Collection[str]) -> dict[str, Any]:
        """Return the values among `reads`, by root and field; a signal that cannot be had is None.

        Raises ValueError, RecursionError if the answer cannot be read, or is too large for a condition.
        """
        values: dict[str, Any] = {"request": request_values(context_of(self._job, self._user), reads)}
        if any(name.startswith("answer.") for name in reads):
            fields = self._read().values
            values["answer"] = {name: value for name, value in fields.items() if f"answer.{name}" in reads}
        names = [name.removeprefix("signals.") for name in sorted(reads) if name.startswith("signals.")]
        if names:
            values["signals"] = {name: await self._signal(policy, name) for name in names}
        if any(name.startswith("usage.") for name in reads):
            values["usage"] = {
                name: getattr(self._job, name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
            }
        if "cost" in reads:
            nanodollars = self._job.cost_nanodollars
            values["cost"] = None if nanodollars is None else nanodollars / NANODOLLARS
            self.seen["cost"] = values["cost"]
        for root in ("request", "answer", "signals", "usage"):
            self.seen |= storable_signals(values.get(root, {}), root)
        check_size(values)
        return values

    async def _signal(self, policy: ReviewPolicy, name: str) -> Any:
        key = (name, policy.name if name in {"judge", "moderation", "webhook"} else "")
        if key not in self._signals:
            self._signals[key] = await self._sources(policy)[name]()
        return self._signals[key]

    def _sources(self, policy: ReviewPolicy) -> dict[str, Callable[[], Awaitable[Any]]]:
        return {
            "logprob_mean": self._logprob_mean,
            "logprob_min": self._logprob_min,
            "schema_ok": self._schema_ok,
            "judge": partial(self._judge, policy),
            "moderation": partial(self._moderation, policy),
            "webhook": partial(self._webhook, policy),
        }

    async def _logprob_mean(self) -> float | None:
        values = self._logprobs()
        return sum(values) / len(values) if values else None

    async def _logprob_min(self) -> float | None:
        return min(self._logprobs(), default=None)

    def _logprobs(self) -> Sequence[float]:
        return self._answer.logprobs or logprobs_of(self._answer.body)

    async def _schema_ok(self) -> bool | None:
        return meets_schema(self._job.body, self._read().texts)

    async def _judge(self, policy: ReviewPolicy) -> float | None:
        return await judge_score(self._services, policy, self._job, self._text(), self._perform)

    async def _moderation(self, policy: ReviewPolicy) -> Any:
        return await moderation_of(self._services, policy, self._text(), self._perform)

    async def _webhook(self, policy: ReviewPolicy) -> Any:
        if policy.webhook is None:
            return None
        return await webhook_answer(self._services, policy.webhook, policy, self._job, self._answer.body)

    def _text(self) -> str:
        return "\n".join(self._read().texts)

    def _read(self) -> AnswerContent:
        if self._reading is None:
            self._reading = read_answer(self._answer.body)
        return self._reading
