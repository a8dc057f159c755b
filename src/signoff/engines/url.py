"""Parsing and checking of a model's URL, cached for all requests that use it."""

from functools import lru_cache

from yarl import URL

from signoff.core.allow_list import check_model_url
from signoff.errors import AddressRefused, ModelFailed, ModelUnreachable

ADDRESS_NOT_ALLOWED = "The model's address is in a range that is closed to models (link-local, metadata services)."


@lru_cache(maxsize=1024)
def parse_model_url(url: str) -> URL:
    """Parse `url`, whose query is not re-encoded. Raises ModelFailed, and ModelUnreachable for an invalid URL.

    An IP address in the URL itself never goes through a resolver, so it is checked here.
    """
    parsed = None
    try:
        parsed = URL(url, encoded="?" in url)
        check_model_url(str(parsed.origin()))
    except (ValueError, AddressRefused):
        if parsed is None or parsed.host is None or parsed.scheme not in {"http", "https"}:
            raise ModelUnreachable("The model's `url` is not a valid http or https URL.") from None
        raise ModelFailed(ADDRESS_NOT_ALLOWED) from None
    return parsed
