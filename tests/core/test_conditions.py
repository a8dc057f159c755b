"""Conditions of policies: what they can read, what is refused when they are saved, and what they evaluate to."""

from __future__ import annotations

from typing import Any

import pytest

from signoff.core.reviews.conditions import MAX_ITEMS, MAX_TEXT_LENGTH, Condition, check_size
from signoff.core.reviews.expression import MAX_LENGTH, BadExpressionError

VALUES: dict[str, Any] = {
    "request": {"user": "ann@example.com", "tags": {"team": "legal"}, "path": "/v1/chat/completions"},
    "answer": {"text": "Delete it.", "tool_calls": [{"name": "rm", "arguments": {"path": "/"}}], "length": 10},
    "signals": {"logprob_min": -3.0, "logprob_mean": None, "moderation": {"flagged": True}, "webhook": {"score": 0.7}},
    "usage": {"prompt_tokens": 3},
    "cost": 0.25,
}


@pytest.mark.parametrize(
    ("source", "reads", "result"),
    [
        ("signals.logprob_min < -1.0", {"signals.logprob_min"}, True),
        ("signals.logprob_mean == null || signals.logprob_mean < -1.0", {"signals.logprob_mean"}, True),
        ('request["user"] in ["ann@example.com"]', {"request.user"}, True),
        ('has(request.tags.team) && request.tags.team == "legal"', {"request.tags"}, True),
        ('answer.tool_calls.exists(c, c.name == "rm" && c.arguments.path == "/")', {"answer.tool_calls"}, True),
        ('answer.text.matches(r"(?i)\\bdelete\\b")', {"answer.text"}, True),
        ("size(answer.tool_calls) > 1 ? true : cost < 0.2", {"answer.tool_calls", "cost"}, False),
        ("usage.prompt_tokens + 1 > 3 // a comment", {"usage.prompt_tokens"}, True),
        ("signals.moderation.flagged && signals.webhook.score > 0.5", {"signals.moderation", "signals.webhook"}, True),
        ("!(answer.length > 10)", {"answer.length"}, True),
    ],
)
def test_a_condition_reads_only_what_it_names(source: str, reads: set[str], result: bool) -> None:
    condition = Condition(source)
    assert (condition.reads, condition.is_met(VALUES)) == (reads, result)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", f"the expression must be 1 to {MAX_LENGTH} characters long (got 0)"),
        ("x" * (MAX_LENGTH + 1), f"(got {MAX_LENGTH + 1})"),
        ("1 +", "syntax error at line 1"),
        ("true &&\n é", "syntax error at line 2, column 2"),
        ("answer.txt == 'x'", "line 1, column 8: there is no field `txt`; the fields are empty, finish_reason"),
        ('request["usr"] == "x"', "line 1, column 9: there is no field `usr`"),
        ("request[answer.text] == 'x'", "`request` needs a field"),
        ("logprob_min < 1.0", "line 1, column 1: there is no `logprob_min`; an expression can read answer, cost"),
        ("signals == {}", "line 1, column 1: `signals` needs a field"),
        ("answer.text == 1", "line 1, column 1: a string and an int cannot be compared by =="),
        ("true && answer.length < 'x'", "line 1, column 9: an int and a string cannot be compared by <"),
        ("answer.length + 1.5 > 2.0", "convert one of them with double()"),
        ("answer.length", "the result must be true or false (it is an int)"),
        ("answer.text && true", "line 1, column 1: this must be true or false (it is a string)"),
        ("answer.tool_calls.exists(c, c.nme == 'x')", "line 1, column 31: there is no field `nme`"),
        ("answer.text.lower() == 'x'", "line 1, column 1: there is no method `lower`"),
        ("open('x') == 'x'", "line 1, column 1: there is no function `open`"),
        ("answer.text.matches(request.user)", "line 1, column 21: `matches` takes a pattern in quotes"),
        ("answer.text.matches('(')", "line 1, column 21: this is not a regular expression"),
        ("answer.text.matches('(\\\\w{1,50}){1,50}')", "line 1, column 21: this is not a regular expression, or too"),
        ("[1].all(x, [1].all(y, [1].all(z, true)))", "at most 2 of all, exists"),
        ("!" * 200 + "true", "nested too deeply"),
        ("(" * 500 + "true" + ")" * 500, ""),
    ],
)
def test_a_condition_that_would_fail_is_refused_with_its_position(source: str, message: str) -> None:
    with pytest.raises(BadExpressionError) as refused:
        Condition(source)
    assert message in str(refused.value)


@pytest.mark.parametrize("source", ["signals.logprob_mean < 1.0", "answer.refusal == 'x'", "request.tags"])
def test_a_condition_that_fails_raises_an_error(source: str) -> None:
    with pytest.raises((TypeError, KeyError)):
        Condition(source).is_met(VALUES)


@pytest.mark.parametrize(
    "value",
    [{"text": "x" * (MAX_TEXT_LENGTH + 1)}, {"tags": [0] * (MAX_ITEMS + 1)}, [[[0] * 150] * 150] * 2],
    ids=["text", "list", "values"],
)
def test_values_that_would_take_long_are_refused(value: object) -> None:
    check_size(VALUES)
    with pytest.raises(ValueError, match="too large for a condition"):
        check_size(value)
