"""Delays between attempts: exponential backoff with full jitter under a ceiling, and fixed schedules.

Source: Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

from collections.abc import Sequence

import msgspec

# Codes and types of errors that no retry helps against, because the upstream's account must be paid or opened first
# (OpenAI, Azure, DeepSeek, Anthropic, OpenRouter, Moonshot, Alibaba, Volcengine, Zhipu). A rate limit has other codes.
SPENT_CODES = frozenset(
    {
        "insufficient_quota",
        "insufficient_balance",
        "insufficient_credits",
        "insufficient_funds",
        "quota_exhausted",
        "credits_exhausted",
        "billing_error",
        "billing_not_active",
        "billing_hard_limit_reached",
        "payment_required",
        "account_deactivated",
        "account_suspended",
        "access_terminated",
        "1113",
        "exceeded_current_quota_error",
        "arrearage",
        "accountoverdueerror",
    }
)
# Codes of errors that blame the request; gateways send some of them with status 500.
REQUEST_CODES = frozenset(
    {
        "context_length_exceeded",
        "string_above_max_length",
        "content_filter",
        "content_policy_violation",
        "datainspectionfailed",
        "data_inspection_failed",
        "invalid_prompt",
    }
)


# A server that asks for a longer wait is tried again all the same: its clock may be wrong, or its trouble over.
MAX_RETRY_AFTER_SECONDS = 3600.0


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of an exponential backoff."""

    first_seconds: float = 0.5
    """Longest wait after the first attempt; it doubles with each further one."""
    ceiling_seconds: float = 30
    """Longest wait after any attempt."""


def wait_seconds(
    backoff: Backoff, attempt: int, random_float: float, retry_after_seconds: float | None = None
) -> float:
    """Return the seconds to wait after failed attempt number `attempt`.

    Args:
        backoff: parameters of the backoff.
        attempt: number of the failed attempt, from 1.
        random_float: a random number in [0, 1); 1 returns the ceiling of this attempt.
        retry_after_seconds: `Retry-After` of the server, which is a floor, up to MAX_RETRY_AFTER_SECONDS.
    """
    ceiling = min(backoff.ceiling_seconds, backoff.first_seconds * 2.0 ** min(attempt - 1, 32))
    return max(random_float * ceiling, min(retry_after_seconds or 0, MAX_RETRY_AFTER_SECONDS))


def scheduled_seconds(waits: Sequence[float], attempt: int, random_float: float) -> float | None:
    """Return the seconds to wait after failed attempt number `attempt` (from 1): its entry of `waits`, up to 10 % more.

    Return None if `waits` has no entry for it. `random_float` is a random number in [0, 1).
    """
    return waits[attempt - 1] * (1 + random_float / 10) if attempt <= len(waits) else None
