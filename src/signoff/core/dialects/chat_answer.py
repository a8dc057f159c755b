"""Chat completions, whole or as a stream, as translations to the answers of other APIs read them."""

from typing import Any, NamedTuple, cast

import msgspec

from signoff.core.decode import JsonObject, as_object
from signoff.core.dialects.reported_usage import read_counts, reasoning_of_counts, usage_of_counts
from signoff.core.tokens import Usage
from signoff.errors import ModelGarbled


class ChatCall(NamedTuple):
    """A call of a tool."""

    call_id: str
    """Id of the call; empty if the upstream gave none."""
    name: str
    """Name of the tool."""
    arguments: str
    """Arguments, as the model wrote them."""


class ChatEnding(msgspec.Struct):
    """The end of a choice, and the tokens of the completion."""

    finish_reason: str | None = None
    """Reason of the end; None if there is none."""
    stop_sequence: str | None = None
    """Stop sequence that ended the text, as vLLM names it; None if none did."""
    usage: Usage | None = None
    """Tokens of the completion; None if they are not reported."""
    reasoning_tokens: int = 0
    """Completion tokens that are thoughts."""

    def add_choice(self, choice: JsonObject) -> None:
        """Take over what a choice, or an event of one, says about the end."""
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish_reason = reason
        if isinstance(stop := choice.get("stop_reason"), str):
            self.stop_sequence = stop

    def add_usage(self, members: JsonObject) -> None:
        """Take over the usage of a completion, or of an event of one, if it reports any."""
        counts = read_counts(members)
        if (usage := usage_of_counts(counts)) is not None:
            self.usage, self.reasoning_tokens = usage, reasoning_of_counts(counts)


class ChatAnswer(NamedTuple):
    """The first choice of a whole chat completion."""

    text: str
    """Text of the message; empty without one."""
    refusal: str
    """Text with which the model refused; empty if it did not."""
    calls: list[ChatCall]
    """Calls of tools, in order."""
    created: int
    """Time of the completion in seconds since 1970; 0 if it has none."""
    end: ChatEnding
    """End of the choice, and the tokens."""


class _Choice(msgspec.Struct):
    message: JsonObject
    finish_reason: Any = None
    stop_reason: Any = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    created: Any = None


def parse_chat_answer(body: bytes) -> ChatAnswer:
    """Return the first choice of a chat completion. Raises ModelGarbled if `body` is not one."""
    try:
        completion = msgspec.json.decode(body, type=_Completion)
        choice = completion.choices[0]
        calls = [_call(call) for call in call_members(choice.message)]
    except (ValueError, IndexError, RecursionError) as error:
        raise ModelGarbled(f"The model's answer is not a chat completion: {error}") from None
    end = ChatEnding()
    end.add_choice({"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason})
    end.add_usage(msgspec.json.decode(body))
    refusal, created = choice.message.get("refusal"), completion.created
    return ChatAnswer(
        text=content_text(choice.message.get("content")),
        refusal=refusal if isinstance(refusal, str) else "",
        calls=calls,
        created=int(created) if isinstance(created, int | float) else 0,
        end=end,
    )


def _call(call: JsonObject) -> ChatCall:
    function = msgspec.convert(call.get("function") or call.get("custom") or {}, JsonObject)
    arguments = function.get("arguments") or function.get("input") or ""
    if not isinstance(arguments, str):  # some servers send the object itself
        arguments = msgspec.json.encode(arguments).decode()
    return ChatCall(str(call.get("id") or ""), str(function.get("name") or ""), arguments)


def call_members(message: JsonObject) -> list[JsonObject]:
    """Return the calls of tools in a message or a delta, also one in the earlier form `function_call`.

    Raises ValueError for calls of another form.
    """
    calls: Any = message.get("tool_calls") or []
    calls = msgspec.convert([calls] if isinstance(calls, dict) else calls, list[JsonObject])
    if function := as_object(message.get("function_call")):
        calls.append({"index": 0, "function": function})
    return calls


def content_text(content: object) -> str:
    """Return the text of a content: a text, or the texts of all of its blocks, whatever their types; empty without one.

    `answer.text_of_content` reads only the blocks that are text of an answer.
    """
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    blocks = [as_object(block) for block in cast("list[object]", content)]
    return "".join(str(block["text"]) for block in blocks if isinstance(block.get("text"), str))
