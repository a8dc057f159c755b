"""Upstreams whose answers have numbers of a test's choice: log-probabilities of tokens, and results of moderation."""

from __future__ import annotations

from typing import Any

from fakes.http_server import RecordedRequest, Reply, chunked, json_reply, sse_event


async def give_logprobs(request: RecordedRequest) -> Reply:
    """Answer `ok`; each number of the last message is the log-probability of a token, if the request wants them.

    A request that a policy has changed is refused if its last message is `refuse`.
    """
    if not request.path.endswith("/chat/completions"):
        return json_reply({"error": {"message": "Not found."}}, status=404)
    body = request.json()
    text = body["messages"][-1]["content"]
    if isinstance(text, list):
        text = text[0]["text"]
    if text == "refuse" and body.get("logprobs"):
        return json_reply({"error": {"message": "This model has no logprobs."}}, status=400)
    numbers = [float(word) for word in text.split() if word.lstrip("-").replace(".", "").isdigit()]
    tokens: list[dict[str, Any]] = [
        {"token": "ok", "logprob": number, "bytes": None, "top_logprobs": []} for number in numbers
    ]
    logprobs = {"content": tokens, "refusal": None} if body.get("logprobs") and tokens else None
    if body.get("stream"):
        first = {"index": 0, "delta": {"role": "assistant", "content": "ok"}, "logprobs": logprobs}
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
        events = [
            sse_event({"id": "c1", "object": "chat.completion.chunk", "choices": [each]}) for each in (first, last)
        ]
        return chunked(*events, sse_event("[DONE]"))
    message = {"role": "assistant", "content": "ok"}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    return json_reply({"id": "c1", "object": "chat.completion", "choices": [choice]})


async def moderate(request: RecordedRequest) -> Reply:
    """Flag an input with the word `violence`."""
    flagged = "violence" in request.json()["input"]
    result = {"flagged": flagged, "categories": {"violence": flagged}, "category_scores": {"violence": float(flagged)}}
    return json_reply({"id": "modr-1", "model": "fake", "results": [result]})
