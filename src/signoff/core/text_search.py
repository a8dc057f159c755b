"""Search for a text in the requests and answers of jobs, without regard to case."""

import re

from signoff.core.binary import decode_binary
from signoff.core.dialects.answer import text_or_json
from signoff.core.dialects.transcript import transcript

_WORD = re.compile(r"[a-z0-9]+")
MAX_WORDS = 4
_TEXT_MEMBER = b'"text"'


class TextSearch:
    """A text to search for. Most jobs do not have it, and are told apart by their bytes, without reading their JSON."""

    def __init__(self, text: str) -> None:
        self._text = text.casefold()
        words = sorted(set(_WORD.findall(self._text)), key=len, reverse=True)[:MAX_WORDS]
        self._words = tuple(word.encode() for word in words)

    def matches(self, body: bytes, response: bytes | None) -> bool:
        """Return True if the text is in what the request says, or in the text of the answer."""
        if self._may_have(body) and any(self._text in entry.text.casefold() for entry in transcript(body)):
            return True
        if response is None or not self._may_have(response):
            return False
        try:
            return self._text in text_or_json(response).casefold()
        except (ValueError, RecursionError):
            return False

    def _may_have(self, raw: bytes) -> bool:
        r"""Return False if JSON cannot have the text, because its bytes lack one of the words.

        Escapes (`\u…`) can hide a word, as can the envelope of a form and a word that goes through several blocks.
        """
        if b"\\u" in raw or raw.count(_TEXT_MEMBER) > 1 or decode_binary(raw) is not None:
            return True
        folded = raw.lower() if raw.isascii() else raw.decode(errors="replace").casefold().encode()
        return all(word in folded for word in self._words)
