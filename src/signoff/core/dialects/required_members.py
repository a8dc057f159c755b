"""Members that the endpoints of OpenAI's and Anthropic's APIs require in a body.

Sources: the API references of OpenAI and Anthropic, and those of vLLM and TEI for members that take the place of a
required one.
"""

import re

import msgspec

from signoff.core.endpoints import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    MODERATIONS,
    RERANK,
    RESPONSES,
)

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
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
# The way in which nearly all clients begin a body: what follows need not be read.
_FIRST_MEMBER = re.compile(rb'\s*\{\s*(?:"model"\s*:\s*"[^"\\]*"\s*,\s*)?"([a-z_]+)"\s*:\s*["\[{]')


def missing_member(path: str, body: bytes) -> str | None:
    """Return the name of a member that `path` requires and that `body` lacks or has as null; None if there is none.

    A body that is not an object has no members.
    """
    groups = REQUIRED_MEMBERS.get(path, ())
    first = _FIRST_MEMBER.match(body)
    if first is not None and len(groups) == 1 and first[1].decode() in groups[0]:
        return None
    try:
        members = _MEMBERS.decode(body) if groups else {}
    except msgspec.ValidationError:
        members = {}
    present = {name for name, value in members.items() if bytes(value) != b"null"}
    return next((group[0] for group in groups if present.isdisjoint(group)), None)
