"""Members that the paths of OpenAI's and Anthropic's APIs require in a body.

Sources: the API references of OpenAI and Anthropic, and those of vLLM and TEI for members that take the place of a
required one.
"""

import msgspec

from signoff.core.api_paths import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    MODERATIONS,
    RERANK,
    RESPONSES,
)
from signoff.core.members import Members

# Of each group, a body has one member that is not null; an error names the first.
REQUIRED_MEMBERS: dict[str, tuple[tuple[str, ...], ...]] = {
    CHAT: (("messages",),),
    COMPLETIONS: (("prompt", "prompt_embeds"),),
    RESPONSES: (("input", "prompt", "previous_response_id", "conversation"),),
    EMBEDDINGS: (("input", "messages"),),
    MODERATIONS: (("input",),),
    RERANK: (("query",), ("documents", "texts")),
    MESSAGES: (("messages",), ("max_tokens",)),
    COUNT_TOKENS: (("messages",),),
}
_NULL = msgspec.Raw(b"null")


def missing_member(path: str, members: Members) -> str | None:
    """Return the name of a member that `path` requires and a body with `members` lacks or has as null; else None."""
    for group in REQUIRED_MEMBERS.get(path, ()):
        for name in group:
            if members.get(name, _NULL) != _NULL:
                break
        else:
            return group[0]
    return None
