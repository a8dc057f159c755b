"""Usage as upstreams report it: OpenAI, Anthropic, Google, AWS, Cohere, DeepSeek, Groq, Ollama, llama.cpp and others.

The reports have the same few numbers, under different names and in different places. So a report is read as counts by
name, and a member of an unexpected type does not hide the others.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, cast

import msgspec

from signoff.core.decode import JsonObject
from signoff.core.tokens import Usage, count_answer_tokens

Counts = dict[str, int]
"""Positive numbers by name, in lower case and without underscores."""
# A larger number is a fault of the upstream.
MAX_TOKENS = 1_000_000_000

# Names of each number; the first one in a report counts.
_PROMPT = (
    *("prompttokens", "inputtokens", "prompttokencount", "inputtokencount"),
    *("promptevalcount", "tokensevaluated", "promptn"),
)
_COMPLETION = (
    *("completiontokens", "outputtokens", "candidatestokencount", "responsetokencount", "outputtokencount"),
    *("evalcount", "tokenspredicted", "predictedn", "generatedtokens"),
)
_TOTAL = ("totaltokens", "totaltokencount")
_REASONING = ("reasoningtokens", "thoughtstokencount", "reasoningoutputtokens", "thinkingtokens")
# Prompt tokens from the upstream's cache. An upstream that uses these names counts them within the prompt.
_CACHED = (
    *("cachedtokens", "promptcachehittokens", "cachedprompttokens", "cachedinputtokens", "numcachedtokens"),
    *("cachedcontenttokencount", "prompttokenscached"),
)
# Under these names they count beside the prompt, unless the total says otherwise.
_CACHE_READ = ("cachereadinputtokens", "cachereadinputtokencount", "cachereadtokens", "cachen")
_CACHE_WRITTEN = ("cachecreationinputtokens", "cachewriteinputtokens", "cachewriteinputtokencount")
_TOOL_PROMPT = ("tooluseprompttokencount",)
_IN_DETAILS = frozenset(_CACHED + _CACHE_READ + _REASONING)
_NAMES = _IN_DETAILS.union(_PROMPT, _COMPLETION, _TOTAL, _CACHE_WRITTEN, _TOOL_PROMPT)
# Members of a report with numbers of their own. Cohere counts `tokens`, and charges for `billed_units`.
_INNER_REPORTS = ("billed_units", "tokens")


def parse_usage(body: bytes) -> Usage | None:
    """Return the usage that an answer reports, or None; completion tokens that it does not report are estimated.

    Raises:
        ValueError: the answer is not JSON.
        RecursionError: the answer is nested too deeply.
    """
    usage = _openai_usage(body) or usage_of_counts(read_counts(_report_members(body)))
    if usage is None or usage.completion_tokens:
        return usage
    return msgspec.structs.replace(usage, completion_tokens=count_answer_tokens(body))


def read_counts(answer: object) -> Counts:
    """Return the counts of an answer, or of an event, both decoded: those of its first report that has any."""
    if not isinstance(answer, dict):
        return {}
    reports = _reports(cast("JsonObject", answer))
    return next((counts for report in reports if (counts := _counts_of(report))), Counts())


def usage_of_counts(counts: Counts) -> Usage | None:
    """Return the usage that `counts` amount to; None if they have no tokens.

    The total tells what the other numbers leave out: cached tokens of the prompt, and reasoning in the completion.
    Without a total, cached tokens count beside `input_tokens` (Anthropic), and within `prompt_tokens` (OpenAI).
    """
    prompt, completion, total = (_first(counts, names) for names in (_PROMPT, _COMPLETION, _TOTAL))
    if not (prompt or completion or total):
        return None
    beside = sum(_first(counts, names) for names in (_CACHE_READ, _CACHE_WRITTEN, _TOOL_PROMPT))
    if prompt + completion + beside <= total or (not total and "prompttokens" not in counts):
        prompt += beside
    if prompt or not completion:
        completion = max(completion, total - prompt)
    else:
        prompt = max(0, total - completion)
    if not total:
        completion += counts.get("thoughtstokencount", 0)
    cached = min(prompt, _first(counts, _CACHED) or _first(counts, _CACHE_READ))
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=total, cached_tokens=cached)


def reasoning_of_counts(counts: Counts) -> int:
    """Return the completion tokens in `counts` that are thoughts; 0 if none are reported."""
    return _first(counts, _REASONING)


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _OpenAIDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _OpenAIUsage(msgspec.Struct):
    """Usage in OpenAI's format. A cache under another name is an error here, and so read from the counts."""

    total_tokens: _Tokens
    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens = 0
    input_tokens: _Tokens = 0
    output_tokens: _Tokens = 0
    prompt_tokens_details: _OpenAIDetails | None = None
    input_tokens_details: _OpenAIDetails | None = None
    cached_tokens: None = None
    num_cached_tokens: None = None
    prompt_cache_hit_tokens: None = None
    cache_read_input_tokens: None = None
    cache_creation_input_tokens: None = None


class _OpenAIAnswer(msgspec.Struct):
    usage: _OpenAIUsage


def _openai_usage(body: bytes) -> Usage | None:
    """Return the usage of an answer in OpenAI's format, whose numbers add up; None for any other."""
    try:
        usage = msgspec.json.decode(body, type=_OpenAIAnswer).usage
    except msgspec.ValidationError:
        return None
    prompt, completion = usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens
    if not prompt or usage.total_tokens != prompt + completion:
        return None
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = min(prompt, (details.cached_tokens or 0) if details else 0)
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=usage.total_tokens, cached_tokens=cached
    )


_NOTHING = msgspec.Raw(b"null")
# Members of an answer that are large, and rarely have a report.
_LARGE = {"choices", "response", "message"}


class _Report(msgspec.Struct):
    """Members of an answer in which a report can be. The others, such as embeddings, can be large."""

    usage: msgspec.Raw = _NOTHING
    choices: msgspec.Raw = _NOTHING
    response: msgspec.Raw = _NOTHING
    message: msgspec.Raw = _NOTHING
    x_groq: msgspec.Raw = _NOTHING
    meta: msgspec.Raw = _NOTHING
    timings: msgspec.Raw = _NOTHING
    details: msgspec.Raw = _NOTHING
    usage_metadata: msgspec.Raw = _NOTHING
    google_usage: msgspec.Raw = msgspec.field(name="usageMetadata", default=_NOTHING)
    aws_usage: msgspec.Raw = msgspec.field(name="amazon-bedrock-invocationMetrics", default=_NOTHING)
    prompt_eval_count: msgspec.Raw = _NOTHING
    eval_count: msgspec.Raw = _NOTHING
    tokens_evaluated: msgspec.Raw = _NOTHING
    tokens_predicted: msgspec.Raw = _NOTHING


_REPORT_MEMBERS = [(field.name, field.encode_name) for field in msgspec.structs.fields(_Report)]


def _report_members(body: bytes) -> JsonObject:
    try:
        members = msgspec.json.decode(body, type=_Report)
    except msgspec.ValidationError:
        msgspec.json.decode(body, type=msgspec.Raw)  # any JSON is fine, but it must be JSON
        return {}
    reports = JsonObject()
    for name, encoded_name in _REPORT_MEMBERS:
        raw = getattr(members, name)
        if raw is not _NOTHING and (name not in _LARGE or b'"usage"' in bytes(raw)):
            reports[encoded_name] = msgspec.json.decode(raw)
    return reports


def _reports(answer: JsonObject) -> Iterator[object]:
    """Yield the objects of an answer or an event that can be a report."""
    yield answer.get("usage")
    for choice in _as_list(answer.get("choices")):
        yield _member(choice, "usage")
    for name in ("response", "message", "x_groq"):
        yield _member(answer.get(name), "usage")
    yield answer.get("usageMetadata", answer.get("usage_metadata"))
    yield from (answer.get(name) for name in ("meta", "amazon-bedrock-invocationMetrics", "timings", "details"))
    yield answer


def _counts_of(report: object) -> Counts:
    counts = Counts()
    for members in _as_list(report) or [report]:
        for name, value in _items(members):
            folded = _fold(name)
            if folded in _NAMES:
                _add(counts, folded, value)
            elif name in _INNER_REPORTS:
                counts = _counts_of(value) | counts
            elif folded.endswith("details"):
                for inner_name, inner_value in _items(value):
                    if _fold(inner_name) in _IN_DETAILS:
                        _add(counts, _fold(inner_name), inner_value)
    return counts


def _add(counts: Counts, name: str, value: object) -> None:
    if number := _tokens(value):
        counts.setdefault(name, number)


def _tokens(value: object) -> int:
    """Return a number of tokens, which some upstreams write as a float or a text; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return 0
    return int(number) if math.isfinite(number) and 0 < number <= MAX_TOKENS else 0


def _first(counts: Counts, names: Iterable[str]) -> int:
    return next((counts[name] for name in names if name in counts), 0)


def _fold(name: str) -> str:
    return name.replace("_", "").lower()


def _as_list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _items(value: object) -> Iterable[tuple[str, object]]:
    return cast("JsonObject", value).items() if isinstance(value, dict) else ()


def _member(value: object, name: str) -> object:
    return cast("JsonObject", value).get(name) if isinstance(value, dict) else None
