"""Signals of planted items: what the rules would have read of an answer that no model has given."""

from collections.abc import Mapping
from typing import Any

from signoff.core.job import Job
from signoff.core.price import NANO
from signoff.core.reviews.answers import AnswerContent, read_answer
from signoff.core.reviews.request_values import context_of, request_values
from signoff.core.reviews.schema_check import meets_schema
from signoff.core.reviews.stored_signals import storable_signals

# Signals that no reviewer can check by reading the answer.
_LOGPROBS = frozenset({"signals.logprob_mean", "signals.logprob_min"})
_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")


def signals_of_copy(job: Job, signals: Mapping[str, Any], pace: float) -> dict[str, Any]:
    """Return the signals of a planted item with the same names as `signals`.

    What a reader of the request and the answer can check is computed from them, or left out if they cannot be read.
    Opinions of other models are those of the answer beside it, and log-probabilities are these times `pace`.

    Args:
        job: The job that presents the planted item.
        signals: Signals of the answer that it is presented beside, by full name.
        pace: Number near 1.
    """
    computed, result = _computed(job, signals), dict[str, Any]()
    for name, value in signals.items():
        if name in computed:
            result[name] = computed[name]
        elif name in _LOGPROBS:
            result[name] = value * pace if isinstance(value, float) else value
        elif name.startswith("signals.") and name != "signals.schema_ok":
            result[name] = value
    return result


def _computed(job: Job, signals: Mapping[str, Any]) -> dict[str, Any]:
    user = str(signals.get("request.user", ""))
    values = storable_signals(request_values(context_of(job, user), signals.keys()), "request")
    values |= storable_signals({name: getattr(job, name) for name in _TOKENS}, "usage")
    values["cost"] = None if job.cost_nanodollars is None else job.cost_nanodollars / NANO
    if (content := _content(job.response)) is not None:
        values |= storable_signals(content.values, "answer")
        values["signals.schema_ok"] = meets_schema(job.body, content.texts)
    return values


def _content(response: bytes | None) -> AnswerContent | None:
    try:
        return None if response is None else read_answer(response)
    except (ValueError, RecursionError):
        return None
