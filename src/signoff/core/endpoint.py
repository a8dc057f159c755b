"""The endpoints of the OpenAI API whose shapes are known here. What else an upstream has passes as it is."""

from __future__ import annotations

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"
RERANK = "/v1/rerank"
EDITS = "/v1/edits"

# These take and give JSON; anything else from a model is garbled.
KNOWN = frozenset({CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MODERATIONS, RERANK, EDITS})
STREAMED = frozenset({CHAT, COMPLETIONS, RESPONSES})
