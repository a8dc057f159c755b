"""Tests of transcripts: nothing that a request says is left out."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.dialects.transcript import answer_details, transcript

WORDS = st.text("abcdefgh", min_size=1, max_size=6)
CONTENT = st.one_of(
    WORDS,
    st.none(),
    st.lists(st.builds(lambda text: {"type": "text", "text": text}, WORDS), max_size=3),
    st.lists(st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, WORDS), max_size=2),
)
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": CONTENT}),
        st.fixed_dictionaries({"type": st.just("function_call"), "name": WORDS, "arguments": WORDS}),
        st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": st.lists(WORDS, max_size=2)}),
        WORDS,
    ),
    max_size=5,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "messages": MESSAGES,
        "input": st.one_of(WORDS, MESSAGES),
        "instructions": WORDS,
        "prompt": st.one_of(WORDS, st.lists(WORDS, max_size=3)),
        "tools": st.lists(st.fixed_dictionaries({"name": WORDS}), max_size=2),
        "temperature": st.integers(0, 2),
    },
)


def texts_in(value: Any) -> list[str]:
    match value:
        case dict():
            # the type of a part is not said to the model
            return [text for name, each in value.items() if name != "type" for text in texts_in(each)]
        case list():
            return [text for each in value for text in texts_in(each)]
        case _:
            return [str(value)] if value is not None else []


@given(BODIES)
def test_every_text_of_a_request_is_in_its_transcript(body: dict[str, Any]) -> None:
    entries = transcript(json.dumps(body).encode())
    shown = "\n".join(f"{entry.role}: {entry.text}" for entry in entries)
    assert [text for text in texts_in(body) if text not in shown] == []


def test_arguments_of_tools_are_shown_whole_and_data_by_its_beginning() -> None:
    arguments = json.dumps({"note": "pay the bill " * 400, "to": "M. Malory"})
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "pay", "arguments": arguments}}]}
    image = {"role": "user", "content": [{"image_url": {"url": "data:image/png;base64," + "A" * 90_000}}]}
    [called, shown] = transcript(json.dumps({"messages": [call, image]}).encode())
    assert "M. Malory" in called.text
    assert "90022 characters" in shown.text
    assert "M. Malory" in (answer_details(json.dumps({"choices": [{"message": call}]}).encode()) or "")


def test_messages_are_in_order_with_their_roles() -> None:
    body = {"model": "m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}
    assert transcript(json.dumps(body).encode()) == [("system", "Be brief."), ("user", "Why?")]


def test_fields_of_a_form_are_shown_and_files_by_their_size() -> None:
    form = (
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nsay it\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\xff\xfe\r\n--b--\r\n'
    )
    body = encode_binary(BinaryBody("multipart/form-data; boundary=b", form))
    assert transcript(body) == [("prompt", "say it"), ("file", "2 bytes")]
    assert transcript(encode_binary(BinaryBody("audio/wav", b"12"))) == [("body", "audio/wav, 2 bytes")]


def test_only_an_answer_that_says_more_than_its_text_has_details() -> None:
    plain = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}]}
    assert answer_details(json.dumps(plain).encode()) is None
    for more in ({"tool_calls": [{"id": "1"}]}, {"refusal": "No."}, {"audio": {"id": "2"}}, {"reasoning": "Hm."}):
        answer = {"choices": [{"message": plain["choices"][0]["message"] | more}]}  # type: ignore[operator]
        assert json.dumps(next(iter(more))) in (answer_details(json.dumps(answer).encode()) or "")
    assert answer_details(json.dumps({"choices": plain["choices"] * 2}).encode()) is not None
    assert answer_details(b'"text"') is answer_details(b"{") is answer_details(None) is None
