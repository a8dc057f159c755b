"""Usage in the formats of several upstreams, read from whole answers and from events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from signoff.core import sse
from signoff.core.dialects.answer import usage_of_events
from signoff.core.dialects.reported_usage import MAX_TOKENS, parse_usage
from signoff.core.tokens import Usage

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
OPENAI = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
# Each report, and its tokens: of the prompt, of the answer, and those that came from the upstream's cache.
REPORTS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "openai": ({"usage": OPENAI | {"prompt_tokens_details": {"cached_tokens": 64}}}, (100, 20, 64)),
    "reasoning within the completion": (
        {"usage": OPENAI | {"completion_tokens_details": {"reasoning_tokens": 15}}},
        (100, 20, 0),
    ),
    "reasoning beside the completion": (
        {"usage": OPENAI | {"total_tokens": 210, "completion_tokens_details": {"reasoning_tokens": 90}}},
        (100, 110, 0),
    ),
    "a total with more than both": ({"usage": OPENAI | {"total_tokens": 210}}, (100, 110, 0)),
    "responses": (
        {
            "usage": {
                "input_tokens": 9,
                "output_tokens": 3,
                "total_tokens": 12,
                "input_tokens_details": {"cached_tokens": 8},
            }
        },
        (9, 3, 8),
    ),
    "deepseek": ({"usage": OPENAI | {"prompt_cache_hit_tokens": 90, "prompt_cache_miss_tokens": 10}}, (100, 20, 90)),
    "moonshot": ({"usage": OPENAI | {"cached_tokens": 90}}, (100, 20, 90)),
    "anthropic": (
        {
            "usage": {
                "input_tokens": 5,
                "cache_read_input_tokens": 80,
                "cache_creation_input_tokens": 15,
                "output_tokens": 20,
            }
        },
        (100, 20, 80),
    ),
    "a cache in the words of anthropic, within the prompt": (
        {"usage": OPENAI | {"cache_read_input_tokens": 80, "cache_creation_input_tokens": 0}},
        (100, 20, 80),
    ),
    "a cache beside the prompt, as the total tells": (
        {"usage": OPENAI | {"total_tokens": 200, "cache_read_input_tokens": 80}},
        (180, 20, 80),
    ),
    "google": (
        {
            "usageMetadata": {
                "promptTokenCount": 100,
                "candidatesTokenCount": 20,
                "thoughtsTokenCount": 30,
                "totalTokenCount": 150,
                "cachedContentTokenCount": 40,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}],
            }
        },
        (100, 50, 40),
    ),
    "google without a total": (
        {"usage_metadata": {"prompt_token_count": 100, "candidates_token_count": 20, "thoughts_token_count": 30}},
        (100, 50, 0),
    ),
    "aws": (
        {"usage": {"inputTokens": 5, "outputTokens": 20, "totalTokens": 105, "cacheReadInputTokens": 80}},
        (85, 20, 80),
    ),
    "cohere": (
        {"meta": {"billed_units": {"input_tokens": 7, "output_tokens": 2}, "tokens": {"input_tokens": 70}}},
        (7, 2, 0),
    ),
    "cohere's second version": (
        {"usage": {"tokens": {"output_tokens": 9}, "billed_units": {"input_tokens": 7}}},
        (7, 9, 0),
    ),
    "ollama": ({"message": {"content": "hi"}, "prompt_eval_count": 26, "eval_count": 298}, (26, 298, 0)),
    "llama.cpp": ({"choices": [CHOICE], "timings": {"cache_n": 10, "prompt_n": 2, "predicted_n": 35}}, (12, 35, 10)),
    "groq": ({"choices": [CHOICE], "x_groq": {"id": "req", "usage": OPENAI}}, (100, 20, 0)),
    "in a choice": ({"choices": [CHOICE | {"usage": OPENAI}]}, (100, 20, 0)),
    "in a response": ({"type": "response.completed", "response": {"usage": OPENAI}}, (100, 20, 0)),
    "in a list": ({"usage": [OPENAI]}, (100, 20, 0)),
    "an empty report beside another": (
        {"usage": {"prompt_tokens": 0}, "timings": {"prompt_n": 1, "predicted_n": 2}},
        (1, 2, 0),
    ),
    "floats": ({"usage": {"prompt_tokens": 100.0, "completion_tokens": 20.0, "total_tokens": 120.0}}, (100, 20, 0)),
    "texts": ({"usage": {"prompt_tokens": "100", "completion_tokens": "20", "total_tokens": "120"}}, (100, 20, 0)),
    "nulls": ({"usage": OPENAI | {"prompt_tokens_details": None, "completion_tokens_details": None}}, (100, 20, 0)),
    "details of another type": ({"usage": OPENAI | {"prompt_tokens_details": [{"modality": "TEXT"}]}}, (100, 20, 0)),
    "an odd member": ({"usage": OPENAI | {"cost": {"total": 0.1}, "total_tokens": {"all": 120}}}, (100, 20, 0)),
    "a negative number": (
        {"usage": {"prompt_tokens": -100, "completion_tokens": 20, "total_tokens": 120}},
        (100, 20, 0),
    ),
    "an absurd number": ({"usage": OPENAI | {"total_tokens": MAX_TOKENS + 1}}, (100, 20, 0)),
    "more from the cache than there is": ({"usage": OPENAI | {"cached_tokens": 1000}}, (100, 20, 100)),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_of_any_format_is_read(name: str) -> None:
    answer, tokens = REPORTS[name]
    whole = parse_usage(json.dumps(answer).encode())
    streamed = usage_of_events([sse.event(json.dumps(answer).encode())], b"{}")
    for usage in (whole, streamed):
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == tokens


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": True}, {"prompt_tokens": "many"}, {"total_tokens": float("1e300")}, []]
)
def test_a_report_without_a_number_is_none(usage: Any) -> None:
    assert parse_usage(json.dumps({"usage": usage}).encode()) is None


def counted(*payloads: dict[str, Any]) -> Usage | None:
    return usage_of_events([sse.event(json.dumps(payload).encode()) for payload in payloads], b"{}")


def test_the_counts_of_several_events_add_up_to_one_report() -> None:
    start = {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 1}
    usage = counted(
        {"type": "message_start", "message": {"usage": start}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
    )
    assert usage == Usage(prompt_tokens=100, completion_tokens=15, cached_tokens=90)


def test_an_empty_report_at_the_end_undoes_none() -> None:
    zero = dict.fromkeys(OPENAI, 0)
    assert counted({"choices": [], "usage": OPENAI}, {"choices": [], "usage": zero}) == Usage(**OPENAI)
