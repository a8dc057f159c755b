"""The page of one user, for admins: their sessions, which can be ended, and the erasure of what they sent and got."""

from litestar import MediaType, Response, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Template

from signoff.core.access import check_admin
from signoff.core.filters import JobFilter
from signoff.dashboard.shell import PEOPLE, page, redirect
from signoff.doors.callers import check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import INTS, parse_digits, parse_form
from signoff.doors.people import check_token
from signoff.errors import BadRequest
from signoff.work.admin.erasure import begin_erasure
from signoff.work.admin.people import end_sessions, get_user, list_sessions, revoke_token
from signoff.work.jobs.query import count_jobs

MAX_LISTED = 50


@get("/dashboard/people/users/{user_id:int}", include_in_schema=False, media_type=MediaType.HTML)
async def show_user(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    user_id: FromPath[int],
    after: FromQuery[str] = "",
) -> Template:
    """Show a page of the sessions of a user, and what an erasure deletes."""
    user = await get_user(services, check_token(caller), user_id)
    last_id = parse_digits(after)
    after_id = last_id if last_id is not None and last_id < INTS else 0
    sessions = await list_sessions(services, caller, user.id, after_id=after_id, limit=MAX_LISTED)
    context = {
        "user": user,
        "sessions": sessions,
        "next_session": sessions[-1].id if len(sessions) == MAX_LISTED else None,
        "jobs": await count_jobs(services, caller, JobFilter(user_id=user.id)),
    }
    return page(request, services, caller, "user.html", PEOPLE.name, **context)


@post("/dashboard/people/users/{user_id:int}/sessions/end", include_in_schema=False, status_code=303)
async def post_end_all(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, user_id: FromPath[int]
) -> Response[str]:
    """End all sessions and sign-in links of a user; all processes refuse them within a second."""
    check_same_site(scope_of(request))
    check_admin(check_token(caller))
    await end_sessions(services, caller, user_id)
    return _to_user(user_id)


@post("/dashboard/people/users/{user_id:int}/sessions/{session_id:int}/end", include_in_schema=False, status_code=303)
async def post_end_one(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    user_id: FromPath[int],
    session_id: FromPath[int],
) -> Response[str]:
    """End one session; all processes refuse it within a second."""
    check_same_site(scope_of(request))
    check_admin(check_token(caller))
    await revoke_token(services, caller, "session", session_id)
    return _to_user(user_id)


@post("/dashboard/people/users/{user_id:int}/erase", include_in_schema=False, status_code=303)
async def post_erase(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, user_id: FromPath[int]
) -> Response[str]:
    """Disable a user for good and begin to erase them, if the form has their e-mail address."""
    check_same_site(scope_of(request))
    form = parse_form(await request.body(), dict[str, str], "erasure")
    user = await get_user(services, check_token(caller), user_id)
    if form.get("email", "").strip().lower() != user.email.lower():
        raise BadRequest(f"`email` must be the address of the user, {user.email}, to confirm that they are erased.")
    await begin_erasure(services, caller, user_id)
    return _to_user(user_id)


def _to_user(user_id: int) -> Response[str]:
    return redirect(f"{PEOPLE.path}/users/{user_id}")


# For the router of people, because two routers cannot share a path.
HANDLERS = (show_user, post_end_all, post_end_one, post_erase)
