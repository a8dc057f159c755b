"""Removal of secrets from texts that callers and operators see."""

import re

MASK = "***"
# Keys of upstreams as they write them (OpenAI, Anthropic and others; Google; Hugging Face), whole or masked by them
# already, and bearer tokens.
_KEY = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|nvapi|pplx|csk|fw|r8)[-_][\w*.-]{5,}[\w*]|\bAIza[\w*-]{10,}|\bhf_[A-Za-z0-9*]{16,}"
    r"|(?i:\bbearer\s+)[\w.~+/=*-]{7,}[\w=*]"
)


def mask_keys(text: str, key: str | None = None) -> str:
    """Return `text` with `key`, and all that looks like a key of an upstream, replaced by MASK."""
    if key:
        text = text.replace(key, MASK)
    return _KEY.sub(MASK, text)
