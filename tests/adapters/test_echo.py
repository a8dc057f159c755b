"""The echo engine: its answers, options and misbehaviour."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import msgspec
import pytest

from signoff.core import sse
from signoff.core.dialects.answer import answer_text, collect, parse_answer
from signoff.core.model import Model, Timeouts
from signoff.core.tokens import Usage
from signoff.engine import Engine, ModelRequest
from signoff.engines.echo import EchoEngine, Options, options_of
from signoff.errors import BadBody, BadRequest, ModelAnswered, ModelCut, ModelTimedOut
from support.sinks import Events, body_of

pytestmark = pytest.mark.anyio

Asking = Callable[..., Awaitable[bytes | list[bytes]]]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CONTENT = "  Good morning,\n dear  caf\u00e9 "
CHAT_BODY = msgspec.json.encode({"messages": [{"role": "user", "content": CONTENT}]})
BODIES = {CHAT: CHAT_BODY, TEXT: msgspec.json.encode({"prompt": CONTENT})}
ECHO = Model(name="echo", kind="echo")


async def ask(
    target: str = "echo",
    *,
    path: str = CHAT,
    body: bytes = CHAT_BODY,
    model: Model = ECHO,
) -> bytes:
    """Return the whole answer."""
    engine: Engine = EchoEngine(faults=True)
    request = ModelRequest(path=path, body=body, target=target)
    return await body_of(lambda sink: engine.answer(model, request, sink))


async def stream(
    target: str = "echo",
    *,
    path: str = CHAT,
    body: bytes = CHAT_BODY,
    model: Model = ECHO,
    into: Events | None = None,
) -> list[bytes]:
    """Return all events of a stream; after an error, `into` holds those that arrived before it."""
    engine: Engine = EchoEngine(faults=True)
    events = Events() if into is None else into
    request = ModelRequest(path=path, body=body, target=target, stream=True)
    assert await engine.answer(model, request, events) is None
    return events.received


BOTH = pytest.mark.parametrize("asking", [ask, stream])


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}', "a"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b c"}]}', "b c"),
        (
            b"""{"messages": [{"role": "user", "content": [{"type": "text", "text": "a "},
                {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "b"}]}]}""",
            "a b",
        ),
        (b'{"messages": [{"role": "user", "content": ""}]}', ""),
        (b'{"messages": [{"role": "user"}]}', ""),
        (b'{"prompt": "once upon"}', "once upon"),
        (b'{"prompt": ["once", "upon"]}', "once\nupon"),
        (b'{"input": "words"}', "words"),
        (b'{ "a": [1, 2.50] }', '{"a":[1,2.50]}'),
        (b'{"messages": [{"role": "system", "content": "a"}]}', '{"messages":[{"role":"system","content":"a"}]}'),
        (b'{"messages": 5, "input": "a"}', '{"messages":5,"input":"a"}'),
        (b' [1,\n "x"]', '[1,"x"]'),
        (b'"hello"', '"hello"'),
    ],
)
async def test_an_echo_answers_with_its_input(body: bytes, text: str) -> None:
    assert answer_text(await ask(body=body)) == text


@pytest.mark.parametrize("body", [b"", b"{", b'"\xff"', b"[" * 100_000])
async def test_an_echo_refuses_invalid_json(body: bytes) -> None:
    with pytest.raises(BadBody):
        await ask(body=body)


async def test_a_chat_completion_has_the_shape_that_clients_expect() -> None:
    answer = await ask()

    digest = hashlib.sha256(b"echo\0" + CHAT_BODY).hexdigest()[:16]
    assert msgspec.json.decode(answer) == {
        "id": f"chatcmpl-{digest}",
        "object": "chat.completion",
        "created": 0,
        "model": "echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": CONTENT},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8},
    }


async def test_a_text_completion_has_the_shape_that_clients_expect() -> None:
    answer = await ask(path=TEXT, body=b'{"prompt": "a b"}')

    digest = hashlib.sha256(b'echo\0{"prompt": "a b"}').hexdigest()[:16]
    assert msgspec.json.decode(answer) == {
        "id": f"cmpl-{digest}",
        "object": "text_completion",
        "created": 0,
        "model": "echo",
        "choices": [{"index": 0, "text": "a b", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }


@BOTH
async def test_the_same_request_has_the_same_answer(asking: Asking) -> None:
    assert await asking() == await asking()
    assert await asking() != await asking("echo/delay=0")


async def test_a_stream_has_a_role_a_chunk_per_word_a_finish_and_done() -> None:
    events = await stream()

    assert events[-1] == sse.DONE
    choices = [choice_of(event) for event in events[:-1]]
    assert [choice.delta for choice in choices] == [
        {"role": "assistant", "content": ""},
        *({"content": word} for word in ["  Good", " morning,", "\n dear", "  caf\u00e9", " "]),
        {},
    ]
    assert [choice.finish_reason for choice in choices] == [None] * 6 + ["stop"]


class Choice(msgspec.Struct):
    """A choice of a streamed chat."""

    delta: dict[str, str]
    finish_reason: str | None


class ChatEvent(msgspec.Struct):
    """An event of a streamed chat."""

    object: str
    choices: list[Choice]


def choice_of(event: bytes) -> Choice:
    chat_event = msgspec.json.decode(sse.data_of(event), type=ChatEvent)
    assert chat_event.object == "chat.completion.chunk"
    return chat_event.choices[0]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("target", ["echo", "echo/tokens=50", "echo/tokens=0"])
async def test_a_stream_collects_to_the_whole_answer(path: str, target: str) -> None:
    request = msgspec.json.decode(BODIES[path], type=dict[str, object])
    body = msgspec.json.encode(request | {"stream_options": {"include_usage": True}})

    whole = parse_answer(await ask(target, path=path, body=body))
    streamed = collect(await stream(target, path=path, body=body))

    assert msgspec.json.decode(streamed.body) == msgspec.json.decode(whole.body)
    assert streamed.usage == whole.usage


async def test_a_stream_reports_usage_only_if_requested() -> None:
    assert b'"usage"' not in b"".join(await stream())


@pytest.mark.parametrize(
    ("said", "target", "text"),
    [
        ("one two three", "echo/tokens=5", "one two three one two"),
        ("one two three", "echo/tokens=2", "one two"),
        ("", "echo/tokens=3", "token token token"),
        ("one", "echo/tokens=0", ""),
    ],
)
async def test_an_echo_answers_with_the_requested_number_of_words(said: str, target: str, text: str) -> None:
    answer = parse_answer(await ask(target, body=msgspec.json.encode({"input": said})))

    answer_words, prompt_words = len(text.split()), len(said.split())
    assert answer_text(answer.body) == text
    assert answer.usage == Usage(
        prompt_tokens=prompt_words, completion_tokens=answer_words, total_tokens=prompt_words + answer_words
    )


# Options.


@pytest.mark.parametrize(
    ("name", "target", "options"),
    [
        ("echo", "echo", Options()),
        ("echo", "echo/", Options()),
        ("echo", "echo/delay=0.2", Options(delay=0.2)),
        ("echo", "echo/status=503,retry_after=2", Options(status=503, retry_after=2)),
        ("echo", "echo/hang", Options(hang=True)),
        ("echo", "echo/cut,tokens=9,chunk_delay=1", Options(cut=True, tokens=9, chunk_delay=1)),
        ("team/fake", "team/fake", Options()),
        ("team/fake", "team/fake/cut", Options(cut=True)),
        ("fake-*", "fake-7", Options()),
        ("fake-*", "fake-7/cut", Options(cut=True)),
        ("fake", "alias", Options()),
        ("fake", "openai/gpt-4", Options()),
    ],
)
def test_options_follow_the_first_slash_after_the_models_name(name: str, target: str, options: Options) -> None:
    assert options_of(Model(name=name, kind="echo"), target) == options


@pytest.mark.parametrize(
    "options",
    [
        *("shout", "delay", "delay=", "delay=x", "delay=-1", "delay=nan", "delay=inf", "delay=1e9", "=1", "hang=maybe"),
        *("status=200", "status=600", "status=5.5", "tokens=-1", "tokens=1e9", "tokens=5;cut"),
    ],
)
async def test_an_invalid_option_is_refused_with_a_list_of_the_valid_ones(options: str) -> None:
    with pytest.raises(BadRequest, match=r"delay, chunk_delay, status, retry_after, hang, cut, tokens"):
        await ask(f"echo/{options}")


# Misbehaviour.


@BOTH
async def test_an_echo_fails_with_the_requested_status(asking: Asking) -> None:
    with pytest.raises(ModelAnswered, match="503") as raised:
        await asking("echo/status=503,retry_after=2")

    assert (raised.value.status, raised.value.retry_after_seconds) == (503, 2)
    assert b'"message":"' in raised.value.body


async def test_a_cut_answer_has_no_chunks() -> None:
    with pytest.raises(ModelCut):
        await ask("echo/cut")


async def test_a_cut_stream_ends_after_half_of_its_chunks() -> None:
    whole = await stream("echo/tokens=7")
    events = Events()

    with pytest.raises(ModelCut):
        await stream("echo/tokens=7,cut", into=events)

    assert [choice_of(event).delta for event in events.received] == [
        choice_of(event).delta for event in whole[: len(whole) // 2]
    ]


@pytest.mark.parametrize(
    ("target", "asking"),
    [
        ("echo/hang", ask),
        ("echo/hang", stream),
        ("echo/hang,status=500", ask),
        ("echo/delay=60", ask),
        ("echo/delay=60", stream),
        ("echo/chunk_delay=60", stream),
    ],
)
async def test_an_echo_never_takes_longer_than_its_total_timeout(target: str, asking: Asking) -> None:
    model = Model(name="echo", kind="echo", timeouts=Timeouts(total_seconds=0.05))

    with pytest.raises(ModelTimedOut):
        await asking(target, model=model)


async def test_a_delay_comes_before_the_answer_and_a_chunk_delay_between_chunks() -> None:
    loop = asyncio.get_running_loop()
    start, arrivals = loop.time(), list[float]()
    request = ModelRequest(path=CHAT, body=b'{"input": "a"}', target="echo/delay=0.1,chunk_delay=0.02", stream=True)

    class Clocked(Events):
        async def send(self, events: Sequence[bytes]) -> None:
            arrivals.append(loop.time() - start)

    await EchoEngine(faults=True).answer(ECHO, request, Clocked())

    # The loop's clock has a resolution of one millisecond.
    assert arrivals[0] > 0.098
    assert all(late - early > 0.018 for early, late in pairwise(arrivals))


async def test_a_cancelled_echo_stops_at_once() -> None:
    async with asyncio.TaskGroup() as group:
        call = group.create_task(ask("echo/hang"))
        await asyncio.sleep(0)
        call.cancel()

    assert call.cancelled()


@pytest.mark.parametrize(
    "options", ["hang", "cut", "delay=0.001", "chunk_delay=0.001", "status=503", "retry_after=9", "tokens=3,hang"]
)
async def test_a_caller_can_request_no_fault_unless_the_operator_allows_it(options: str) -> None:
    request = ModelRequest(path=CHAT, body=CHAT_BODY, target=f"echo/{options}")
    with pytest.raises(BadRequest, match=r"need the setting `echo_faults`.*only `tokens` is allowed"):
        await body_of(lambda sink: EchoEngine().answer(ECHO, request, sink))


async def test_a_number_of_words_needs_no_setting() -> None:
    request = ModelRequest(path=CHAT, body=CHAT_BODY, target="echo/tokens=3")
    assert answer_text(await body_of(lambda sink: EchoEngine().answer(ECHO, request, sink))) == "Good morning, dear"


async def test_many_long_words_are_refused_before_they_are_joined() -> None:
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "x" * 1_000_000}]})
    request = ModelRequest(path=CHAT, body=body, target="echo/tokens=100000")
    with pytest.raises(BadRequest, match="`tokens` must ask for at most"):
        await body_of(lambda sink: EchoEngine().answer(ECHO, request, sink))
