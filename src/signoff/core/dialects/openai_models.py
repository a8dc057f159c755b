"""Differences between models of OpenAI that a translation must know."""

import re

# Reasoning models refuse `max_tokens`, and other servers do not know its successor.
_REASONING = re.compile(r"(?:.*/)?(?:o\d|gpt-(?:[5-9]|\d\d))")


def maximum_member(upstream_model: str) -> str:
    """Return the name of the member that bounds the length of a chat completion of this model."""
    return "max_completion_tokens" if _REASONING.match(upstream_model) else "max_tokens"
