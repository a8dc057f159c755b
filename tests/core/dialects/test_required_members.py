"""Tests of the members that endpoints require."""

from __future__ import annotations

import pytest

from signoff.core.api_paths import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EDITS,
    EMBEDDINGS,
    MESSAGES,
    MODERATIONS,
    PREDICT,
    RERANK,
    RESPONSES,
)
from signoff.core.dialects.required_members import missing_member
from signoff.core.members import read_members


@pytest.mark.parametrize(
    ("path", "body", "missing"),
    [
        (CHAT, b"{}", "messages"),
        (CHAT, b'{"model":"m","mesages":[{"role":"user"}],"temperature":0.5}', "messages"),
        (CHAT, b'{"messages":null}', "messages"),
        (CHAT, b'{"model":"m","messages" : null }', "messages"),
        (CHAT, b'{"prompt":"x"}', "messages"),
        (CHAT, b'{"tools":[{"messages":[]}]}', "messages"),
        (CHAT, b'[{"messages":[]}]', "messages"),
        (CHAT, b'"text"', "messages"),
        (CHAT, b'{"messages":[]}', None),
        (CHAT, b'{"model": "m", "messages": [{"role":"user","content":"x"}]}', None),
        (CHAT, b'{"temperature":0,"messages":"text"}', None),
        (CHAT, b'{"messages":3}', None),
        (COMPLETIONS, b'{"messages":[]}', "prompt"),
        (COMPLETIONS, b'{"prompt":""}', None),
        (COMPLETIONS, b'{"prompt":null,"prompt_embeds":"x"}', None),
        (EMBEDDINGS, b'{"model":"m"}', "input"),
        (EMBEDDINGS, b'{"input":[1,2]}', None),
        (RESPONSES, b'{"messages":[]}', "input"),
        (RESPONSES, b'{"input":null}', "input"),
        (RESPONSES, b'{"input":"x"}', None),
        (RESPONSES, b'{"prompt":{"id":"pmpt_1"}}', None),
        (MODERATIONS, b"{}", "input"),
        (MODERATIONS, b'{"input":["x"]}', None),
        (RERANK, b'{"documents":["x"]}', "query"),
        (RERANK, b'{"query":"x"}', "documents"),
        (RERANK, b'{"query":"x","texts":["y"]}', None),
        (MESSAGES, b'{"max_tokens":5}', "messages"),
        (MESSAGES, b'{"max_tokens":5,"messages":null}', "messages"),
        (MESSAGES, b'{"messages":[]}', "max_tokens"),
        (MESSAGES, b"[]", "messages"),
        (COUNT_TOKENS, b"{}", "messages"),
        (COUNT_TOKENS, b'{"messages":[]}', None),
        (EDITS, b"{}", None),
        (PREDICT, b"{}", None),
        ("/v1/audio/speech", b"{}", None),
    ],
)
def test_a_body_lacks_what_its_endpoint_requires(path: str, body: bytes, missing: str | None) -> None:
    assert missing_member(path, read_members(body)) == missing
