"""Estimate: about how many tokens a request will take, told before anybody is asked."""

from __future__ import annotations

import msgspec

from signoff.core.endpoints import EMBEDDINGS, MODERATIONS, RERANK
from signoff.core.tokens import estimate_usage

# What an answer is reckoned with where its request names no maximum.
DEFAULT_OUTPUT_TOKENS = 32
SAY_NOTHING = frozenset({EMBEDDINGS, MODERATIONS, RERANK})


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the request, and of its answer; `is_said`: the request itself names the most that it may be."""

    prompt: int
    output: int
    is_explicit: bool

    def capped(self, most: int | None) -> int:
        """All tokens; where the answer's are only guessed, not more than `most` for that alone."""
        whole = self.prompt + self.output
        return whole if self.is_explicit or most is None else min(whole, max(self.prompt, most))


class _Maximum(msgspec.Struct):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None


def estimate_tokens(path: str, body: bytes) -> Estimate:
    """About what `body`, asked of `path`, takes at most."""
    prompt = estimate_usage(body, 0).prompt_tokens
    if path in SAY_NOTHING:
        return Estimate(prompt=prompt, output=0, is_explicit=True)
    try:
        told = msgspec.json.decode(body, type=_Maximum)
    except (ValueError, RecursionError):
        told = _Maximum()
    maxima = (told.max_completion_tokens, told.max_tokens, told.max_output_tokens)
    said = next((most for most in maxima if most is not None), None)
    each = DEFAULT_OUTPUT_TOKENS if said is None else max(0, said)
    return Estimate(prompt=prompt, output=each * max(1, told.n or 1), is_explicit=said is not None)
