"""Translations: ask a model at the path that a request is for, or with a chat if the model has no such path.

The pairs of formats are in `core/dialects/…_to_chat.py`.
"""

from collections.abc import Awaitable, Sequence
from typing import Protocol

import msgspec

from signoff.core import api_paths, sse
from signoff.core.api_paths import CHAT, COUNT_TOKENS, MESSAGES, RESPONSES, TRANSLATED, UNKNOWN_PATH
from signoff.core.dialects import edits_to_chat, messages_to_chat, responses_to_chat
from signoff.core.dialects.answer import as_completion
from signoff.core.dialects.messages import KEEPALIVES, is_message, is_token_count, message_event, message_of
from signoff.core.dialects.response_events import EventCompleter, complete_body, is_incomplete
from signoff.core.dialects.stream_state import event_type, is_of_type
from signoff.core.estimate import estimate_tokens
from signoff.core.model import Model, accepts_any_json, upstream_name
from signoff.core.reviews.logprobs import logprobs_of, with_logprobs
from signoff.engine import Engine, ModelRequest, Sink
from signoff.errors import BadRequest, ModelAnswered, ModelGarbled
from signoff.runtime.attempt import Attempt
from signoff.work.services import Services

# Paths that models never have, by kind. For `subprocess`, it depends on what the program speaks.
_NEVER = {"echo": TRANSLATED - {RESPONSES}, "anyllm": TRANSLATED, "http": frozenset({COUNT_TOKENS})}
_NEVER_IN_JSON_LINES = frozenset({MESSAGES, COUNT_TOKENS})
_NEVER_IN_HTTP = frozenset[str]()


def ask_engine(
    services: Services, engine: Engine, model: Model, request: ModelRequest, attempt: Attempt
) -> Awaitable[bytes | None]:
    """Return or send the answer of `model`, in the form of the request's path: see `Engine.answer`.

    The path of the request is asked first, and not again for a while if it turned out to be missing.
    """
    if request.path not in TRANSLATED:
        return engine.answer(model, request, attempt)
    return _ask_or_translate(services, engine, model, request, attempt)


async def _ask_or_translate(
    services: Services, engine: Engine, model: Model, request: ModelRequest, attempt: Attempt
) -> bytes | None:
    missing = services.runtime.missing_paths
    is_missing = request.path in _never_of(model) or missing.contains(model, request.target, request.path)
    if not is_missing:
        try:
            return await _ask_directly(services, engine, model, request, attempt)
        except ModelAnswered as denial:
            if attempt.has_begun or not _lacks_endpoint(request, denial):
                raise
    answer = await _ask_as_chat(services, engine, model, request, attempt)
    if not is_missing:  # the model exists, as it has answered
        missing.add(model, request.target, request.path)
    return answer


def _never_of(model: Model) -> frozenset[str]:
    if model.kind == "subprocess":
        return _NEVER_IN_HTTP if model.serve else _NEVER_IN_JSON_LINES
    return _NEVER.get(model.kind, _NEVER_IN_HTTP)


class _ErrorBody(msgspec.Struct):
    type: str = ""


def _lacks_endpoint(request: ModelRequest, denial: ModelAnswered) -> bool:
    """Return True if an error says that there is no such path.

    An error in Anthropic's format comes from a path of its API, and one that names the previous response from
    the server that does not have it.
    """
    if denial.status not in UNKNOWN_PATH:
        return False
    if request.path == RESPONSES:
        previous_id = responses_to_chat.previous_response_id(request.body)
        return previous_id is None or previous_id.encode() not in denial.body
    try:
        return msgspec.json.decode(denial.body, type=_ErrorBody).type != "error"
    except (ValueError, RecursionError):
        return True


async def _ask_directly(
    services: Services, engine: Engine, model: Model, request: ModelRequest, sink: Attempt
) -> bytes | None:
    """Ask the model at the path of the request, and complete an answer that lacks what clients need."""
    if request.path == RESPONSES:
        previous_id = responses_to_chat.previous_response_id(request.body)
        if previous_id is not None and responses_to_chat.is_translated(previous_id):
            raise BadRequest(
                "`previous_response_id` names a response that no upstream has stored; send the whole conversation in "
                "`input`."
            )
        created_at = _seconds(services)
        answer = await engine.answer(model, request, _CompletingSink(sink, request.target, created_at))
        return None if answer is None else complete_body(answer, request.target, created_at)
    if request.path == MESSAGES and accepts_any_json(model):
        return await _translate_answer(services, engine, model, request, sink)
    if request.path == COUNT_TOKENS:
        answer = await engine.answer(model, request, _TranslatingSink(None, sink))
        if answer is None or not is_token_count(answer):
            raise ModelGarbled("The model's answer is not a count of tokens.")
        return answer
    if request.path == MESSAGES and request.stream:
        return await engine.answer(model, request, _MessageSink(services, request, sink))
    return await engine.answer(model, request, sink)


async def _ask_as_chat(
    services: Services, engine: Engine, model: Model, request: ModelRequest, attempt: Attempt
) -> bytes | None:
    """Ask the model with a chat, and translate its answer. The number of tokens is estimated here instead."""
    name = upstream_name(model, request.target)
    match request.path:
        case api_paths.COUNT_TOKENS:
            return estimated_count(request.body)
        case api_paths.MESSAGES:
            body = messages_to_chat.to_chat(request.body, name)
        case api_paths.RESPONSES:
            body = responses_to_chat.to_chat(request.body, name)
        case _:
            body = edits_to_chat.to_chat(request.body)
    if attempt.translated_logprobs is not None and (extended := with_logprobs(CHAT, body)) is not None:
        body, attempt.has_asked_for_logprobs = extended, True
    return await _translate_answer(services, engine, model, request, attempt, chat=body)


def estimated_count(body: bytes) -> bytes:
    """Return an estimate of the tokens of a request for a message, as an answer of COUNT_TOKENS."""
    return msgspec.json.encode({"input_tokens": estimate_tokens(MESSAGES, body).prompt})


async def _translate_answer(
    services: Services, engine: Engine, model: Model, request: ModelRequest, attempt: Attempt, chat: bytes | None = None
) -> bytes | None:
    """Return or send the answer to `chat`, or to the request itself if that is None, in the form of the request."""
    name, created_at = _new_name(services), _seconds(services)
    translator: ChatTranslator | None = None
    if request.path == MESSAGES:
        translator = messages_to_chat.MessageTranslator(name, request.target)
    elif request.path == RESPONSES:
        translator = responses_to_chat.ResponseTranslator(name, request.target, request.body, created_at)
    sent = request
    if chat is not None:
        sent = msgspec.structs.replace(request, path=CHAT, body=chat, stream=request.stream and translator is not None)
    translated = _TranslatingSink(translator, attempt, attempt.translated_logprobs)
    answer = await engine.answer(model, sent, translated)
    if answer is None:
        await translated.finish()
        return None
    if attempt.translated_logprobs is not None:
        attempt.translated_logprobs += logprobs_of(answer)
    if accepts_any_json(model):
        if request.path == MESSAGES and is_message(answer):
            return answer
        answer = as_completion(answer, request.target)
    match request.path:
        case api_paths.MESSAGES:
            return messages_to_chat.from_chat(answer, name, request.target)
        case api_paths.RESPONSES:
            return responses_to_chat.from_chat(answer, name, request.target, request.body)
        case _:
            return edits_to_chat.from_chat(answer)


def _new_name(services: Services) -> str:
    """Return a new id without its prefix, such as `msg_`. Equal requests get different ids, as users may differ."""
    return responses_to_chat.ID_MARK + services.ids.new_id().replace("-", "")


def _seconds(services: Services) -> int:
    return services.clock() // 1_000_000


class ChatTranslator(Protocol):
    """A translator of one chat stream to the stream of another API."""

    def feed(self, event: bytes) -> list[bytes]:
        """Return the events that one event of the chat becomes. Raises ModelGarbled if it is not one of a chat."""
        ...

    def finish(self) -> list[bytes]:
        """Return the events that end the stream."""
        ...


class _TranslatingSink:
    """Sink of a chat stream that sends what a translator makes of it; without a translator, no stream is expected.

    A stream that is one of Anthropic's API already passes unchanged.
    """

    def __init__(self, translator: ChatTranslator | None, sink: Sink, logprobs: list[float] | None = None) -> None:
        self._translator = translator
        self._sink = sink
        self._logprobs = logprobs
        self._is_translated = True

    async def send(self, events: Sequence[bytes]) -> None:
        """Translate the events, and pass them on. Raises ModelGarbled."""
        if self._translator is None:
            raise ModelGarbled("The model sent a stream although the request asked for a whole answer.")
        if self._is_translated and any(is_of_type(event, "message_start") for event in events):
            self._is_translated = False
        if not self._is_translated:
            await self._sink.send(events)
            return
        if self._logprobs is not None:
            self._logprobs += [value for event in events for value in logprobs_of(sse.data_of(event))]
        translated = [each for event in events for each in self._translator.feed(event)]
        if translated:
            await self._sink.send(translated)

    async def finish(self) -> None:
        """Send the end of the stream."""
        if self._translator is not None and self._is_translated:
            await self._sink.send(self._translator.finish())


class _MessageSink:
    """Sink of a stream of a message that adds the beginning if the server has left it out.

    llama.cpp leaves it out if the first token is not text yet, such as the first half of a character.
    """

    def __init__(self, services: Services, request: ModelRequest, sink: Sink) -> None:
        self._services = services
        self._request = request
        self._sink = sink
        self._has_begun = False

    async def send(self, events: Sequence[bytes]) -> None:
        """Pass the events on, after the beginning."""
        if not self._has_begun:
            kinds = (event_type(event) for event in events if sse.data_of(event))
            first = next((kind for kind in kinds if kind not in KEEPALIVES), None)
            self._has_begun = first is not None
            if first is not None and first != "message_start":
                message = message_of([], _new_name(self._services), self._request.target)
                events = [message_event({"type": "message_start", "message": message}), *events]
        await self._sink.send(events)


class _CompletingSink:
    """Sink of a stream of a response, whose events are completed if the first one shows that they need it."""

    def __init__(self, sink: Sink, model: str, created_at: int) -> None:
        self._sink = sink
        self._model = model
        self._created_at = created_at
        self._completer: EventCompleter | None = None
        self._is_judged = False

    async def send(self, events: Sequence[bytes]) -> None:
        """Complete the events if needed, and pass them on."""
        if not self._is_judged and (first := next((event for event in events if sse.data_of(event)), None)):
            self._is_judged = True
            if is_incomplete(first):
                self._completer = EventCompleter(self._model, self._created_at)
        if self._completer is not None:
            events = [self._completer.feed(event) for event in events]
        await self._sink.send(events)
