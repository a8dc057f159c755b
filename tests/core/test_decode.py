"""Null stands for the default of every optional member of a request."""

from typing import Any

import msgspec
import pytest

from signoff.core.decode import decode_json
from signoff.core.envelope import parse_envelope
from signoff.doors.generate import ChatRequest, Meta, TextRequest
from signoff.doors.jobs import ReviewRequest
from signoff.doors.keys import NewKey
from signoff.doors.limits import LimitDescription
from signoff.doors.models import ModelDescription
from signoff.doors.native import NewJob
from signoff.doors.pipelines import NewCall
from signoff.doors.prompts import NewVersion
from signoff.doors.streams import StreamChange
from signoff.doors.usage import NewPrice
from signoff.work.admin.issue import TokenRequest
from signoff.work.admin.people import UserChange

# Each kind of body, with its required members.
BODIES: dict[type[msgspec.Struct], dict[str, Any]] = {
    TextRequest: {"content": "x"},
    ChatRequest: {"messages": [{"role": "user", "content": "x"}]},
    NewJob: {"body": {}},
    ReviewRequest: {"id": "J", "status": "success"},
    NewCall: {},
    NewVersion: {"body": "x"},
    LimitDescription: {},
    NewKey: {"name": "n", "key": "k"},
    ModelDescription: {},
    StreamChange: {},
    TokenRequest: {},
    UserChange: {},
    NewPrice: {"model": "m", "input": "1", "output": "2"},
}


def accepts_null(field: msgspec.structs.FieldInfo) -> bool:
    """Return True if null is a value of its own for the member."""
    try:
        msgspec.json.decode(b"null", type=field.type)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
def test_null_is_the_default_of_every_optional_member(kind: type[msgspec.Struct]) -> None:
    optional = [field for field in msgspec.structs.fields(kind) if not field.required]
    nulls = {field.encode_name: None for field in optional if not accepts_null(field)}
    required = BODIES[kind]
    assert decode_json(msgspec.json.encode(required | nulls), kind) == decode_json(msgspec.json.encode(required), kind)


@pytest.mark.parametrize("name", ["temperature", "tokens_limit", "stop_words", "model"])
@pytest.mark.parametrize("kind", [TextRequest, ChatRequest])
def test_null_is_the_default_of_a_nested_member(kind: type[TextRequest | ChatRequest], name: str) -> None:
    body = BODIES[kind] | {"priority": None, "meta": {name: None}}
    assert decode_json(msgspec.json.encode(body), kind).meta == Meta()


def test_a_null_beside_an_invalid_member_does_not_make_it_valid() -> None:
    with pytest.raises(msgspec.ValidationError, match="tokens_limit"):
        decode_json(b'{"content": "x", "priority": null, "meta": {"tokens_limit": "many"}}', TextRequest)


@pytest.mark.parametrize("body", [b'{"content": null}', b'{"priority": null}', b"null", b"[null]"])
def test_a_required_member_must_not_be_null(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_json(body, TextRequest)


def test_a_null_with_a_meaning_is_left_as_it_is() -> None:
    version = decode_json(b'{"body": "x", "message": null, "label": null, "model": null}', NewVersion)
    assert (version.message, version.label, version.model) == ("", None, None)


def test_nulls_in_raw_members_are_passed_on() -> None:
    job = decode_json(b'{"body": {"a": null}, "path": null, "metadata": {"b": null}, "priority": null}', NewJob)
    assert (bytes(job.body), bytes(job.metadata), job.priority) == (b'{"a": null}', b'{"b": null}', 5)


def test_null_is_the_default_of_every_member_of_a_message() -> None:
    envelope = parse_envelope(b'{"path": null, "metadata": null, "body": {"model": null, "prompt": "x"}}')
    assert (envelope.path, envelope.metadata, envelope.model) == ("/v1/completions", b"null", None)
    assert envelope.error is None
    assert parse_envelope(b'{"body": null}').error is not None
