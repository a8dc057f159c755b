"""Faults of connections, described for operators without the secrets in the URL of a broker."""

import contextlib
import re
from collections.abc import Generator
from urllib.parse import unquote, urlsplit

from signoff.errors import SignoffError

MAX_CHARACTERS = 300
HIDDEN = "…"
USER_INFO = re.compile(r"(?<=://)[^\s/]*@")


@contextlib.contextmanager
def described_faults(url: str) -> Generator[None]:
    """Convert errors of a client library in the block to ConnectionErrors, whose texts have no secrets."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SignoffError) or type(error) is ConnectionError:
            raise
        raise ConnectionError(describe(error, url)) from error


def describe(error: BaseException, url: str) -> str:
    """Return the type and the text of `error`, or of the first error of a group, without the secrets in `url`."""
    if isinstance(error, BaseExceptionGroup):
        return describe(error.exceptions[0], url)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    text = USER_INFO.sub(f"{HIDDEN}@", str(error).replace(url, HIDDEN))
    for secret in sorted(_secrets_of(url), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = " ".join(text.split())[:MAX_CHARACTERS]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _secrets_of(url: str) -> set[str]:
    """Return the password of `url`, else its user, which may be a token, and its query; as written and decoded."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return {url}
    login = parts.netloc.rpartition("@")[0]
    user, _, password = login.partition(":")
    secrets = {login, password or user, parts.query} - {""}
    return secrets | {unquote(secret) for secret in secrets}
