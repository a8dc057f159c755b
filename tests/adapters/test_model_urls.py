"""URLs of endpoints at OpenAI-compatible servers, whatever an operator pasted, and the headers of their keys."""

import pytest

from signoff.engines.url import key_headers, path_url

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h", "http://h/v1/chat/completions"),
        ("http://h/", "http://h/v1/chat/completions"),
        ("http://h/v1", "http://h/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("http://h//", "http://h/v1/chat/completions"),
        ("http://h//api//v1//", "http://h/api/v1/chat/completions"),
        ("http://v1/llm", "http://v1/llm/v1/chat/completions"),
        ("http://h/api/v4", "http://h/api/v4/chat/completions"),
        ("http://h/v1beta/openai/", "http://h/v1beta/openai/chat/completions"),
        ("http://h/v1#section", "http://h/v1/chat/completions"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions"),
    ],
)
def test_a_base_url_may_contain_its_version_or_not(base: str, url: str) -> None:
    assert path_url(base, CHAT) == url


@pytest.mark.parametrize(
    ("base", "url"),
    [
        (
            "/openai/deployments/gpt?api-version=2024-06-01",
            "/openai/deployments/gpt/chat/completions?api-version=2024-06-01",
        ),
        ("/openai/deployments/gpt/?api-version=1", "/openai/deployments/gpt/chat/completions?api-version=1"),
        ("/openai/deployments/gpt", "/openai/deployments/gpt/chat/completions"),
        (
            "/openai/deployments/gpt/chat/completions?api-version=1",
            "/openai/deployments/gpt/chat/completions?api-version=1",
        ),
        ("/openai/v1?api-version=preview", "/openai/v1/chat/completions?api-version=preview"),
        ("/openai/v1/?api-version=preview#x", "/openai/v1/chat/completions?api-version=preview"),
        ("/models?api-version=2024-05-01-preview", "/models/chat/completions?api-version=2024-05-01-preview"),
        ("/v1?token=a%2Fb&x", "/v1/chat/completions?token=a%2Fb&x"),
        ("?tenant=1", "/v1/chat/completions?tenant=1"),
    ],
)
def test_the_query_of_a_base_url_stays_behind_the_path(base: str, url: str) -> None:
    assert path_url(f"https://h{base}", CHAT) == f"https://h{url}"


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    "endpoint",
    [
        "chat/completions",
        "completions",
        "embeddings",
        "responses",
        "messages",
        "messages/count_tokens",
        "moderations",
        "rerank",
        "models",
        "audio/speech",
        "images/generations",
    ],
)
def test_an_endpoint_that_was_pasted_as_a_base_url_is_replaced(endpoint: str, slash: str) -> None:
    assert path_url(f"https://h/v1/{endpoint}{slash}", CHAT) == "https://h/v1/chat/completions"
    assert path_url(f"https://h/v1/{endpoint}{slash}?k=1", "/v1/embeddings") == "https://h/v1/embeddings?k=1"


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "embeddings"])
def test_a_pasted_endpoint_without_a_version_has_none(endpoint: str) -> None:
    assert path_url(f"https://h/{endpoint}", CHAT) == "https://h/chat/completions"


def test_the_queries_of_the_base_url_and_of_a_request_are_joined() -> None:
    url = path_url("https://h/v1?api-version=1", "/v1/responses/r1", "include=a&API-version=2&after=x%3D")

    assert url == "https://h/v1/responses/r1?api-version=1&include=a&API-version=2&after=x%3D"


@pytest.mark.parametrize("query", ["key=theirs", "a=1&key=theirs", "k%65y=theirs"])
def test_a_request_cannot_replace_a_parameter_of_the_base_url(query: str) -> None:
    assert "theirs" not in path_url("https://h/v1?key=ours", "/v1/responses/r1", query)


@pytest.mark.parametrize(
    ("base", "path", "headers"),
    [
        ("https://api.openai.com/v1", CHAT, ("authorization",)),
        ("https://x.openai.azure.com/openai/v1", CHAT, ("api-key",)),
        ("https://x.services.ai.azure.com/models", CHAT, ("api-key",)),
        ("http://127.0.0.1/openai/deployments/gpt", CHAT, ("api-key",)),
        ("http://gateway/openai/v1?api-version=preview", CHAT, ("api-key",)),
        ("https://api.anthropic.com", "/v1/messages", ("x-api-key",)),
        ("https://api.anthropic.com/v1", CHAT, ("x-api-key",)),
        ("https://h/anthropic", "/v1/messages", ("x-api-key",)),
        ("https://notanthropic.com", CHAT, ("authorization",)),
        ("http://vllm:8000", "/v1/messages", ("authorization", "x-api-key")),
        ("http://vllm:8000", "/v1/messages/count_tokens", ("authorization", "x-api-key")),
    ],
)
def test_each_upstream_gets_its_key_where_it_reads_it(base: str, path: str, headers: tuple[str, ...]) -> None:
    assert key_headers(base, path) == headers
