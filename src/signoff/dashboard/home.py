"""The start page, which leads to the first page of a caller's role, and signing in and out."""

import contextlib

from litestar import MediaType, Response, Router, get, post
from litestar.datastructures import CacheControlHeader
from litestar.response import Template
from litestar.static_files import create_static_files_router  # pyright: ignore[reportUnknownVariableType]

from signoff.core.access import Caller
from signoff.core.sign_in import checked_next
from signoff.dashboard.bundle import BUILT, STATIC, static_hash
from signoff.dashboard.shell import page, pages_of, redirect
from signoff.doors.callers import caller_of, check_same_site
from signoff.doors.dependencies import AnyRequest, InjectedServices, InjectedSettings, scope_of
from signoff.doors.http import INTS, parse_digits
from signoff.doors.session import end_session
from signoff.errors import BadRequest, LimitReached, MissingParameter, PasswordsOff, Unauthorized
from signoff.work.admin.oidc import offers_sign_out, sign_in_methods
from signoff.work.services import Services

SIGN_IN_ERRORS = {
    BadRequest.code: "Fill in the e-mail address and the password.",
    MissingParameter.code: "Fill in the e-mail address and the password.",
    LimitReached.code: "There were too many sign-ins.",
    PasswordsOff.code: "Passwords are turned off here. Sign in another way.",
    Unauthorized.code: "The e-mail address or the password is wrong.",
}


@get("/", include_in_schema=False, media_type=MediaType.HTML)
async def show_home(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings
) -> Template | Response[str]:
    """Redirect to the first page of the caller; show a visitor who is not signed in how to sign in."""
    caller: Caller | None = None
    with contextlib.suppress(Unauthorized):
        caller = await caller_of(services, door_settings, scope_of(request))
    if caller is None or request.query_params.get("error"):
        return await sign_in_page(request, services, error=_sign_in_error(request))
    return redirect(pages_of(caller)[0].path)


@get("/dashboard/sign-in", include_in_schema=False, media_type=MediaType.HTML)
async def show_sign_in(request: AnyRequest, services: InjectedServices) -> Template:
    """Show the form, also to a caller who may use the server without a token."""
    return await sign_in_page(request, services, error=_sign_in_error(request))


async def sign_in_page(request: AnyRequest, services: Services, *, error: str | None) -> Template:
    """Return the page with the ways to sign in, and with `error` unless that is None."""
    query, next_path = request.query_params, checked_next(request.query_params.get("next"))
    return page(
        request,
        services,
        None,
        "sign_in.html",
        "Sign in",
        error=error,
        methods=sign_in_methods(services),
        next_path=None if next_path == "/" else next_path,
        is_signed_out="signed_out" in query and await offers_sign_out(services),
    )


@post("/dashboard/sign-out", include_in_schema=False, status_code=303)
async def post_sign_out(request: AnyRequest, services: InjectedServices) -> Response[str]:
    """End the session, also one that has ended already, and redirect to a page from which to sign in."""
    check_same_site(scope_of(request))
    response, began_at_provider = await end_session(request, services)
    location = "/dashboard/sign-in?signed_out=1" if began_at_provider else "/"
    return Response("", status_code=303, headers=response.headers | {"location": location})


def _sign_in_error(request: AnyRequest) -> str | None:
    """Return the text for the error of a sign-in; None if there is none. No part of the query is shown as it is."""
    text = SIGN_IN_ERRORS.get(request.query_params.get("error", ""))
    seconds = parse_digits(request.query_params.get("retry_after"))
    return text if text is None or seconds is None else f"{text} You can try again in {min(seconds, INTS)} seconds."


router = Router("/", route_handlers=[show_home, show_sign_in, post_sign_out])
# The address of a file has a hash of its content: of the bundle in its name, of the others in the path.
_FOR_EVER = CacheControlHeader(public=True, max_age=31_536_000, immutable=True)
built = create_static_files_router(
    "/static/built", name="built", directories=[BUILT], include_in_schema=False, cache_control=_FOR_EVER
)
hashed = create_static_files_router(
    f"/static/{static_hash()}", name="hashed", directories=[STATIC], include_in_schema=False, cache_control=_FOR_EVER
)
static = create_static_files_router("/static", directories=[STATIC], include_in_schema=False)
