"""Texts of models and users, made safe to print: control characters could change what a terminal or a log shows."""

import re

# Control characters except tab and newline, and characters that change the direction of the text.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return `text` with a replacement for each character that would control the terminal."""
    return CONTROL_CHARACTERS.sub("�", text)
