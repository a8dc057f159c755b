"""Texts of models and users, made safe to print, and the characters of them that a page would not show."""

import re

# Control characters except tab and newline, and characters that change the direction of the text.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

# Characters that take no room on a page, or change how others are shown: controls, marks of direction, blanks without
# width, fillers, and tags. `frontend/src/unseen.js` has the same four classes.
_UNSEEN = (
    r"\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    r"\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# After these, U+FE0E and U+FE0F choose between a picture and a character.
_PICTURES = (
    r"\u0023\u002a\u0030-\u0039\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299"
    r"\U0001f000-\U0001faff"
)
# Between these, U+200D makes one picture of several.
_JOINED = r"\u2190-\u2bff\U0001f000-\U0001faff"
# Between letters of Arabic, the scripts of South and South-East Asia, and Mongolian, U+200C and U+200D change the form.
_SHAPED = r"\u0620-\u109f\u1780-\u18af\ua800-\uabff\ufb50-\ufdff\ufe70-\ufefc"
UNSEEN_CHARACTERS = re.compile(
    rf"[{_UNSEEN}]|\r(?!\n)|(?<![{_PICTURES}])[\ufe0e\ufe0f]"
    rf"|(?<![{_JOINED}{_SHAPED}\ufe0f])\u200d|\u200d(?![{_JOINED}{_SHAPED}])"
    rf"|(?<![{_SHAPED}])\u200c|\u200c(?![{_SHAPED}])"
)


def printable(text: str) -> str:
    """Return `text` with a replacement for each character that would control the terminal."""
    return CONTROL_CHARACTERS.sub("�", text)
