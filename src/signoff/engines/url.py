"""The address of a model as it is used: checked once for all requests that go there."""

from __future__ import annotations

from functools import lru_cache

from yarl import URL

from signoff.core.allow_list import check_model_url
from signoff.errors import AddressRefused, ModelFailed, ModelUnreachable

NO_MODELS = "The model's address is one where no model may be."


@lru_cache(maxsize=1024)
def parse_model_url(url: str) -> URL:
    """`url`, whose query goes as it came. An address that stands in it passes every resolver by, so it is looked at
    here. Raises ModelFailed.
    """
    parsed = None
    try:
        parsed = URL(url, encoded="?" in url)
        check_model_url(str(parsed.origin()))
    except (ValueError, AddressRefused):
        if parsed is None or parsed.host is None or parsed.scheme not in {"http", "https"}:
            raise ModelUnreachable("The model's address is no URL.") from None
        raise ModelFailed(NO_MODELS) from None
    return parsed
