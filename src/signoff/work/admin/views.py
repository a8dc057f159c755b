"""Views of pages that users save under a name, each for themselves."""

from signoff.core.access import Caller, check_identified
from signoff.core.saved_views import SavedView
from signoff.errors import BadRequest, NotFound
from signoff.work.services import Services

MAX_NAME_LENGTH = 60
MAX_QUERY_LENGTH = 2000


async def list_views(services: Services, caller: Caller, page: str) -> list[SavedView]:
    """Return the views that the caller has saved of a page, by name; none for a caller without a token."""
    return [] if caller.is_anonymous else await services.store.views.of_user(caller.user_id, page)


async def save_view(services: Services, caller: Caller, view: SavedView) -> None:
    """Save a view of the caller, in place of one with its name. Raises Unauthorized, BadRequest, Conflict."""
    check_identified(caller)
    if not 0 < len(view.name) <= MAX_NAME_LENGTH or not view.name.isprintable():
        raise BadRequest(f"`name` must be 1 to {MAX_NAME_LENGTH} printable characters (got {view.name!r}).")
    if len(view.query) > MAX_QUERY_LENGTH:
        raise BadRequest(f"`query` must be at most {MAX_QUERY_LENGTH} characters (got {len(view.query)}).")
    await services.store.views.put(caller.user_id, view)


async def drop_view(services: Services, caller: Caller, page: str, name: str) -> None:
    """Delete a view of the caller. Raises Unauthorized, NotFound."""
    check_identified(caller)
    if not await services.store.views.drop(caller.user_id, page, name):
        raise NotFound(f"There is no saved view {name!r}; reload the page to see the views that exist.")
