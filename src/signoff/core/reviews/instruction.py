"""Instructions of reviewers to a model, which follow the answer that is sent back in its conversation."""

from typing import Any

import msgspec

from signoff.core.api_paths import CHAT, COMPLETIONS, EDITS, MESSAGES, RESPONSES
from signoff.core.dialects.answer import answer_text
from signoff.errors import BadRequest

MAX_INSTRUCTION_LENGTH = 20_000


def with_instruction(path: str, body: bytes, answer: bytes | None, instruction: str) -> bytes:
    """Return the request `body` with an instruction for another answer, as a reader of the first one would reply.

    A chat, a message or a response gets the answer as a turn of the assistant, if it has a text, and then the
    instruction as a turn of the user. A text to complete gets the instruction in a paragraph of its own. Raises
    BadRequest for a request of another kind.
    """
    if len(instruction) > MAX_INSTRUCTION_LENGTH:
        raise BadRequest(f"`instruction` must be at most {MAX_INSTRUCTION_LENGTH} characters long.")
    try:
        request = msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):
        request = {}
    text = answer_text(answer) if answer is not None else None
    if isinstance(request.get("messages"), list):
        request["messages"] = [*request["messages"], *_turns(text, instruction)]
    elif path == RESPONSES and isinstance(request.get("input"), str | list):
        request["input"] = [*_items(request["input"]), *_turns(text, instruction)]
    elif path == EDITS and isinstance(request.get("instruction"), str):
        request["instruction"] += f"\n\n{instruction}"
    elif path == COMPLETIONS and isinstance(request.get("prompt"), str):
        request["prompt"] += f"\n\n{instruction}"
    elif path in {CHAT, MESSAGES} and isinstance(request.get("input"), str):  # the plain payload of a queued job
        request["input"] += f"\n\n{instruction}"
    else:
        raise BadRequest("`instruction` needs a request with messages, an input or a prompt; edit `payload` instead.")
    return msgspec.json.encode(request)


def _items(value: str | list[Any]) -> list[Any]:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _turns(answer: str | None, instruction: str) -> list[dict[str, str]]:
    turns = [{"role": "assistant", "content": answer}] if answer else []
    return [*turns, {"role": "user", "content": instruction}]
