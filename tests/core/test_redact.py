"""Tests of the removal of keys from texts."""

import pytest

from signoff.core.redact import mask_keys


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcDEF0123456789",
        "sk-ant-api03-x_y-Z",
        "sk-ab***********wxyz",
        "gsk_0123456789abcdef",
        "AIzaSyA-0123456789_abc",
        "hf_ABCDEFGHIJKLMNOPQRST",
        "Bearer abc.def-ghi=",
        "xai-0123456789",
    ],
)
def test_what_looks_like_a_key_is_removed(key: str) -> None:
    assert mask_keys(f"Incorrect API key provided: {key}, sorry.") == "Incorrect API key provided: ***, sorry."


def test_the_key_that_was_sent_is_removed_whatever_it_looks_like() -> None:
    assert mask_keys('{"error": "bad key hunter2"}', "hunter2") == '{"error": "bad key ***"}'


@pytest.mark.parametrize("text", ["Use scikit-learn or sk-learn.", "Send a bearer token.", "A key is missing.", ""])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert mask_keys(text) == text
