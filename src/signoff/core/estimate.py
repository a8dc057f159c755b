"""Estimate of the tokens that a request will take, before it goes to a model."""

from math import ceil

import msgspec

from signoff.core.api_paths import COUNT_TOKENS, EMBEDDINGS, MODERATIONS, RERANK
from signoff.core.tokens import estimate_usage
from signoff.errors import BadRequest

# Assumed length of an answer if its request has no maximum.
DEFAULT_OUTPUT_TOKENS = 32
# Endpoints whose answers have no tokens.
WITHOUT_OUTPUT = frozenset({EMBEDDINGS, MODERATIONS, RERANK})
# Larger numbers count as this one, so that products and sums of them fit into 64 bits.
MAX_NUMBER = 2**31 - 1
_NULL = msgspec.Raw(b"null")


class TokenEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated number of tokens of a request and of its answer."""

    prompt: int
    """Tokens of the request."""
    output: int
    """Tokens of the answer: its maximum, or DEFAULT_OUTPUT_TOKENS without one."""
    is_explicit: bool
    """True if the request itself states the maximum of its answer, or the answer has no tokens."""

    def capped(self, most: int | None) -> int:
        """Return all tokens; an assumed answer does not raise the sum above `most`, though the prompt alone may."""
        whole = self.prompt + self.output
        return whole if self.is_explicit or most is None else min(whole, max(self.prompt, most))


class _Maximum(msgspec.Struct):
    """Members that bound the length of an answer or the number of answers, as raw JSON."""

    max_tokens: msgspec.Raw = _NULL
    max_completion_tokens: msgspec.Raw = _NULL
    max_output_tokens: msgspec.Raw = _NULL
    n: msgspec.Raw = _NULL
    best_of: msgspec.Raw = _NULL


def estimate_tokens(path: str, body: bytes) -> TokenEstimate:
    """Estimate the maximum number of tokens of the request `body` to `path`.

    Of several maxima the largest counts, as it is not known which one the upstream reads.
    Raises BadRequest for a maximum that is not a number, because an upstream may convert it nevertheless.
    """
    if path == COUNT_TOKENS:
        return TokenEstimate(prompt=0, output=0, is_explicit=True)
    prompt = estimate_usage(body, 0).prompt_tokens
    if path in WITHOUT_OUTPUT:
        return TokenEstimate(prompt=prompt, output=0, is_explicit=True)
    try:
        request = msgspec.json.decode(body, type=_Maximum)
    except (ValueError, RecursionError):
        request = _Maximum()
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    maxima = [most for name in names if (most := _whole_number(request, name)) is not None]
    each = max(maxima) if maxima else DEFAULT_OUTPUT_TOKENS
    answers = max(1, _whole_number(request, "n") or 1, _whole_number(request, "best_of") or 1)
    return TokenEstimate(prompt=prompt, output=each * answers, is_explicit=bool(maxima))


def _whole_number(request: _Maximum, name: str) -> int | None:
    """Return a member, rounded up and at most MAX_NUMBER; None if it is missing, null or negative. Raises BadRequest.

    Some servers, such as that of llama.cpp, take a negative maximum for none.
    """
    raw = bytes(getattr(request, name))
    try:
        number = msgspec.json.decode(raw, type=int | float | None)
    except ValueError:
        raise BadRequest(f"`{name}` must be an integer (got {raw[:40].decode(errors='replace')}).") from None
    return None if number is None or number < 0 else ceil(min(number, MAX_NUMBER))
