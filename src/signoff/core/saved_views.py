"""Views of pages that users have saved under a name."""

import msgspec

MAX_VIEWS = 50


class SavedView(msgspec.Struct, frozen=True, kw_only=True):
    """A page with the filters of its address."""

    page: str
    """Page, such as `jobs`."""
    name: str
    """Name that the user has chosen, unique among the views of the page."""
    query: str
    """Query of the address, without the question mark."""
