"""Estimate of the tokens that a request will take, before it goes to a model."""

import msgspec

from signoff.core.endpoints import EMBEDDINGS, MODERATIONS, RERANK
from signoff.core.tokens import estimate_usage

# Assumed length of an answer if its request has no maximum.
DEFAULT_OUTPUT_TOKENS = 32
# Endpoints whose answers have no tokens.
WITHOUT_OUTPUT = frozenset({EMBEDDINGS, MODERATIONS, RERANK})


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated number of tokens of a request and of its answer."""

    prompt: int
    output: int
    is_explicit: bool
    """True if the request itself states the maximum of its answer, or the answer has no tokens."""

    def capped(self, most: int | None) -> int:
        """Return all tokens; an assumed answer does not raise the sum above `most`, though the prompt alone may."""
        whole = self.prompt + self.output
        return whole if self.is_explicit or most is None else min(whole, max(self.prompt, most))


class _Maximum(msgspec.Struct):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None


def estimate_tokens(path: str, body: bytes) -> Estimate:
    """Estimate the maximum number of tokens of the request `body` to the endpoint `path`."""
    prompt = estimate_usage(body, 0).prompt_tokens
    if path in WITHOUT_OUTPUT:
        return Estimate(prompt=prompt, output=0, is_explicit=True)
    try:
        request = msgspec.json.decode(body, type=_Maximum)
    except (ValueError, RecursionError):
        request = _Maximum()
    maxima = (request.max_completion_tokens, request.max_tokens, request.max_output_tokens)
    maximum = next((most for most in maxima if most is not None), None)
    each = DEFAULT_OUTPUT_TOKENS if maximum is None else max(0, maximum)
    return Estimate(prompt=prompt, output=each * max(1, request.n or 1), is_explicit=maximum is not None)
