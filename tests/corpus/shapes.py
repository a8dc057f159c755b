"""Composed answers of servers that cannot run here: `python tests/corpus/shapes.py` writes them. See README.md.

Their texts are made up; their members, the order of these, and the formatting are those of the servers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
QUESTION = {"messages": [{"role": "user", "content": "Which café is <open>?"}]}
STREAM, USAGE = {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}
CREATED = 1795000000
Json = dict[str, Any]


def main() -> None:
    """Write all exchanges."""
    vllm(), openai(), ollama()


def save(name: str, path: str, body: Json, head: str, answer: str | list[str]) -> None:
    """Write the two files of one exchange; an answer that is a list is sent in chunks."""
    file = HERE / name
    file.parent.mkdir(exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps({"path": path, "body": body}) + "\n")
    if isinstance(answer, str):
        raw = answer.encode()
        head += f"\r\ncontent-length: {len(raw)}"
    else:
        head += "\r\ntransfer-encoding: chunked"
        parts = [part.encode() for part in answer]
        raw = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
    file.with_suffix(".http").write_bytes(head.encode() + b"\r\n\r\n" + raw)


def events(pieces: list[Any], write: Any, *, done: bool = True) -> list[str]:
    return [f"data: {write(piece)}\n\n" for piece in pieces] + (["data: [DONE]\n\n"] if done else [])


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def indented(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def as_go(value: Any) -> str:
    """Return the value as Go's encoding/json writes it: without spaces, and with escapes for < > &."""
    text = compact(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def vllm() -> None:
    """Write the exchanges of vLLM: Starlette's JSON; a stream omits members that were not set."""
    model = {"model": "Qwen/Qwen3-0.6B"}
    ok = "HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 10:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: "
    plain, stream = ok + "application/json", ok + "text/event-stream; charset=utf-8"
    usage = {"prompt_tokens": 13, "total_tokens": 18, "completion_tokens": 5, "prompt_tokens_details": None}
    empty = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": []}
    message = {"role": "assistant", "content": "The café is <open>.", **empty, "reasoning": None}
    tail = {"service_tier": None, "system_fingerprint": None, "usage": usage, "prompt_logprobs": None}
    tail |= {"prompt_token_ids": None, "kv_transfer_params": None}
    begin = {"id": "chatcmpl-5f0c", "object": "chat.completion", "created": CREATED} | model
    ends = {"logprobs": None, "finish_reason": "stop", "stop_reason": None, "token_ids": None}
    save(
        "vllm/chat",
        CHAT,
        model | QUESTION,
        plain,
        compact(begin | {"choices": [{"index": 0, "message": message} | ends]} | tail),
    )
    token = {"token": "The", "logprob": -0.0009114001877605915, "bytes": [84, 104, 101]}
    probs = {"content": [token | {"top_logprobs": [token, {"token": "A", "logprob": -7.125, "bytes": [65]}]}]}
    choice = {"index": 0, "message": message} | ends | {"logprobs": probs}
    request = model | QUESTION | {"logprobs": True, "top_logprobs": 2}
    save("vllm/chat-logprobs", CHAT, request, plain, compact(begin | {"choices": [choice]} | tail))

    def chunk(delta: Json, **more: Any) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None} | more
        return begin | {"object": "chat.completion.chunk", "choices": [choice]}

    words = [chunk({"role": "assistant", "content": ""})]
    words += [chunk({"content": word}) for word in ("The", " café", " is", " <open>")]
    words += [chunk({"content": "."}, finish_reason="stop", stop_reason=None)]
    save("vllm/chat-streamed", CHAT, model | QUESTION | STREAM, stream, events(words, compact))
    payload = begin | {"object": "chat.completion.chunk", "choices": [], "usage": usage}
    save("vllm/chat-streamed-with-usage", CHAT, model | QUESTION | USAGE, stream, events([*words, payload], compact))
    continuous = [
        piece | {"usage": usage | {"completion_tokens": n, "total_tokens": 13 + n}} for n, piece in enumerate(words)
    ]
    request = (
        model | QUESTION | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    )
    save("vllm/chat-streamed-with-running-usage", CHAT, request, stream, events([*continuous, payload], compact))
    call = {"id": "chatcmpl-tool-9a1b", "type": "function", "index": 0, "function": {"name": "weather"}}
    parts = [{"index": 0, "function": {"arguments": part}} for part in ('{"city": "', "K\\u00f6ln", '"}')]
    calls = [chunk({"tool_calls": [part]}) for part in (call, *parts)]
    calls += [chunk({"content": ""}, finish_reason="tool_calls", stop_reason=None)]
    save(
        "vllm/chat-tools-streamed", CHAT, model | QUESTION | USAGE, stream, events([words[0], *calls, payload], compact)
    )
    thoughts = [chunk({"reasoning": word, "reasoning_content": word}) for word in ("Hmm", ", well")]
    save(
        "vllm/chat-reasoning-streamed",
        CHAT,
        model | QUESTION | STREAM,
        stream,
        events([*thoughts, *words[1:]], compact),
    )
    embedding = {"object": "embedding", "index": 0, "embedding": [0.0123291015625, -5.9604645e-08, 0.75]}
    payload = {"id": "embd-77", "object": "list", "created": CREATED} | model | {"data": [embedding]}
    body = payload | {"usage": usage | {"completion_tokens": 0, "total_tokens": 13}}
    save("vllm/embeddings", EMBEDDINGS, model | {"input": "café"}, plain, compact(body))
    bad = "HTTP/1.1 400 Bad Request\r\nserver: uvicorn\r\ncontent-type: application/json"
    error = {"message": "This model's maximum context length is 2048 tokens.", "type": "BadRequestError", "param": None}
    save("vllm/error-too-long", CHAT, model | QUESTION, bad, compact({"error": error | {"code": 400}}))
    gone = bad.replace("400 Bad Request", "404 Not Found")
    save("vllm/error-no-such-endpoint", RESPONSES, model | {"input": "x"}, gone, compact({"detail": "Not Found"}))
    error = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": None, "code": 500}
    late = events([words[0], words[1], {"error": error}], compact)
    save("vllm/error-in-stream", CHAT, model | QUESTION | STREAM, stream, late)


def openai() -> None:
    """Write the exchanges of OpenAI: indented bodies, events of one line, many headers."""
    model, dated = {"model": "gpt-4.1-mini"}, {"model": "gpt-4.1-mini-2025-04-14"}
    head = "HTTP/1.1 {}\r\nDate: Sat, 21 Nov 2026 10:00:00 GMT\r\nContent-Type: {}\r\nopenai-processing-ms: 412\r\n"
    head += "openai-version: 2020-10-01\r\nx-ratelimit-remaining-requests: 9999\r\nx-request-id: req_0a"
    plain, stream = head.format("200 OK", "application/json"), head.format("200 OK", "text/event-stream; charset=utf-8")
    zero = {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
    usage: Json = {"prompt_tokens": 14, "completion_tokens": 5, "total_tokens": 19}
    usage |= {"prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0}, "completion_tokens_details": zero}
    tail = {"usage": usage, "service_tier": "default", "system_fingerprint": "fp_38343a2f8f"}
    begin = {"id": "chatcmpl-CdE1", "object": "chat.completion", "created": CREATED} | dated
    message = {"role": "assistant", "content": "The café is <open>.", "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    save("openai/chat", CHAT, model | QUESTION, plain, indented(begin | {"choices": [choice]} | tail) + "\n")
    call = {"id": "call_62136", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
    calls = choice | {"message": message | {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    save("openai/chat-tools", CHAT, model | QUESTION, plain, indented(begin | {"choices": [calls]} | tail) + "\n")

    def chunk(delta: Json, reason: str | None = None, **more: Any) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        head = begin | {"object": "chat.completion.chunk", "service_tier": "default"}
        return head | {"system_fingerprint": "fp_38343a2f8f", "choices": [choice]} | more | {"obfuscation": "k2Fh"}

    words = [chunk({"role": "assistant", "content": "", "refusal": None})]
    words += [chunk({"content": word}) for word in ("The", " café", " is", " <open>", ".")] + [chunk({}, "stop")]
    save("openai/chat-streamed", CHAT, model | QUESTION | STREAM, stream, events(words, compact))
    payload = chunk({}, usage=usage) | {"choices": []}
    with_null = [piece | {"usage": None} for piece in words]
    save(
        "openai/chat-streamed-with-usage",
        CHAT,
        model | QUESTION | USAGE,
        stream,
        events([*with_null, payload], compact),
    )
    function = {"name": "weather", "arguments": ""}
    first = {"index": 0, "id": "call_62136", "type": "function", "function": function}
    parts = [{"index": 0, "function": {"arguments": part}} for part in ('{"', 'city":"', "Köln", '"}')]
    second = {"index": 1, "id": "call_62137", "type": "function", "function": function}
    calls = [chunk({"tool_calls": [part]}) for part in (first, *parts, second, {**parts[0], "index": 1})]
    save(
        "openai/chat-tools-streamed",
        CHAT,
        model | QUESTION | STREAM,
        stream,
        events([*calls, chunk({}, "tool_calls")], compact),
    )
    embedding = {"object": "embedding", "index": 0, "embedding": [0.0023064255, -0.009327292, 1e-06]}
    payload = {
        "object": "list",
        "data": [embedding],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    save(
        "openai/embeddings",
        EMBEDDINGS,
        {"model": "text-embedding-3-small", "input": "café"},
        plain,
        indented(payload) + "\n",
    )
    responses(model, dated, plain, stream)
    for name, status, code, kind in (
        ("error-quota", "429 Too Many Requests", "insufficient_quota", "insufficient_quota"),
        ("error-no-such-model", "404 Not Found", "model_not_found", "invalid_request_error"),
        ("error-wrong-key", "401 Unauthorized", "invalid_api_key", "invalid_request_error"),
        ("error-no-code", "400 Bad Request", None, "invalid_request_error"),
    ):
        error = {"message": f"It was refused: {code}.", "type": kind, "param": None, "code": code}
        save(
            f"openai/{name}",
            CHAT,
            model | QUESTION,
            head.format(status, "application/json"),
            indented({"error": error}) + "\n",
        )


def responses(model: Json, dated: Json, plain: str, stream: str) -> None:
    """Write a response, whole and as the named events of its stream, which has no `[DONE]`."""
    text = {"type": "output_text", "annotations": [], "logprobs": [], "text": "The café is <open>."}
    item = {"id": "msg_68", "type": "message", "status": "completed", "content": [text], "role": "assistant"}
    usage: Json = {"input_tokens": 14, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 6}
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 20}
    whole: Json = {"id": "resp_68", "object": "response", "created_at": CREATED, "status": "completed"}
    whole |= {"background": False, "error": None, "incomplete_details": None} | dated | {"output": [item]}
    whole |= {"parallel_tool_calls": True, "previous_response_id": None, "store": True, "usage": usage, "metadata": {}}
    begun = whole | {"status": "in_progress", "output": [], "usage": None}
    position = {"output_index": 0, "item_id": "msg_68", "content_index": 0}
    stream_events: list[tuple[str, Json]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
    ]
    stream_events += [
        ("response.output_item.added", {"output_index": 0, "item": item | {"status": "in_progress", "content": []}})
    ]
    stream_events += [
        ("response.output_text.delta", position | {"delta": word}) for word in ("The", " café", " is <open>.")
    ]
    stream_events += [
        ("response.output_text.done", position | {"text": text["text"]}),
        ("response.completed", {"response": whole}),
    ]
    lines = [
        f"event: {kind}\ndata: {compact({'type': kind, 'sequence_number': number} | more)}\n\n"
        for number, (kind, more) in enumerate(stream_events)
    ]
    save("openai/response", RESPONSES, model | {"input": "Which?"}, plain, indented(whole) + "\n")
    save("openai/response-streamed", RESPONSES, model | {"input": "Which?"} | STREAM, stream, lines)


def ollama() -> None:
    """Write the exchanges of Ollama: Go's JSON and a line feed; every event has the role, a tool call is one event."""
    model = {"model": "qwen3:0.6b"}
    ok = "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nDate: Sat, 21 Nov 2026 10:00:00 GMT"
    plain, stream = ok.format("application/json"), ok.format("text/event-stream")
    usage = {"prompt_tokens": 17, "completion_tokens": 5, "total_tokens": 22}
    begin = {"id": "chatcmpl-318", "object": "chat.completion", "created": CREATED} | model
    begin |= {"system_fingerprint": "fp_ollama"}
    message = {"role": "assistant", "content": "The café is <open> & warm."}
    whole = begin | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
    save("ollama/chat", CHAT, model | QUESTION, plain, as_go(whole) + "\n")

    def chunk(delta: Json, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""} | delta, "finish_reason": reason}
        return begin | {"object": "chat.completion.chunk", "choices": [choice]}

    words = [chunk({"content": word}) for word in ("The", " café", " is", " <open>")] + [chunk({}, "stop")]
    save("ollama/chat-streamed", CHAT, model | QUESTION | STREAM, stream, events(words, as_go))
    payload = begin | {"object": "chat.completion.chunk", "choices": [], "usage": usage}
    save("ollama/chat-streamed-with-usage", CHAT, model | QUESTION | USAGE, stream, events([*words, payload], as_go))
    function = {"name": "weather", "arguments": '{"city":"Köln"}'}
    call = {"id": "call_b3k", "index": 0, "type": "function", "function": function}
    calls = [chunk({"tool_calls": [call]}), chunk({}, "tool_calls")]
    save("ollama/chat-tools-streamed", CHAT, model | QUESTION | STREAM, stream, events(calls, as_go))
    text = begin | {"id": "cmpl-318", "object": "text_completion"}
    texts = [text | {"choices": [{"text": word, "index": 0, "finish_reason": None}]} for word in ("Once", " upon")]
    texts += [text | {"choices": [{"text": "", "index": 0, "finish_reason": "stop"}]}]
    save("ollama/completion-streamed", COMPLETIONS, model | {"prompt": "O"} | STREAM, stream, events(texts, as_go))
    embedding = {"object": "embedding", "embedding": [0.010071029, -1.7594862e-05, 0.05007221], "index": 0}
    listed = {
        "object": "list",
        "data": [embedding],
        "model": "all-minilm",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    save("ollama/embeddings", EMBEDDINGS, {"model": "all-minilm", "input": "café"}, plain, as_go(listed) + "\n")
    gone = plain.replace("200 OK", "404 Not Found")
    error = {
        "message": 'model "nobody" not found, try pulling it first',
        "type": "not_found_error",
        "param": None,
        "code": None,
    }
    save("ollama/error-no-such-model", CHAT, {"model": "nobody"} | QUESTION, gone, as_go({"error": error}) + "\n")


if __name__ == "__main__":
    main()
