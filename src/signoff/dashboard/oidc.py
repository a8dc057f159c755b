"""Signing in and out by the OpenID Connect provider: the routes between this server, the browser and the provider."""

from litestar import MediaType, Response, Router, get
from litestar.datastructures import Cookie
from litestar.response import Template

from signoff.dashboard.home import sign_in_page
from signoff.dashboard.shell import address_of, root_of
from signoff.doors.callers import check_navigation, check_same_site, session_cookie
from signoff.doors.dependencies import AnyRequest, InjectedServices, InjectedSettings, scope_of
from signoff.doors.errors import error_headers
from signoff.doors.http import DoorSettings, client_of, scheme_of
from signoff.errors import LimitReached, NotFound, ProviderFailed, SignInExpired, SignInRefused, SignoffError
from signoff.work.admin.oidc import (
    ATTEMPT_SECONDS,
    ProviderAnswer,
    begin_sign_in,
    finish_sign_in,
    sign_out_address,
)
from signoff.work.admin.sign_in import SESSION_SECONDS
from signoff.work.services import Services

PATH = "/signin/oidc"
# Cookie of a sign-in that has begun. With the prefix, no other host and no page without TLS can set it.
ATTEMPT_COOKIE, SECURE_ATTEMPT_COOKIE = "signoff_oidc", "__Host-signoff_oidc"
# Cookie of the ID token, which only the routes here get. Browsers keep at most 4096 bytes of a cookie.
ID_TOKEN_COOKIE, MAX_ID_TOKEN_LENGTH = "signoff_id_token", 3800
_FAULTS = (LimitReached, NotFound, ProviderFailed, SignInExpired, SignInRefused)


@get(PATH, include_in_schema=False, media_type=MediaType.HTML)
async def get_begin(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings
) -> Response[str] | Template:
    """Redirect the browser to the provider, which redirects it to the callback."""
    check_navigation(scope_of(request))
    redirect_uri = f"{_public_address(request, door_settings)}{PATH}/callback"
    try:
        address, sealed = await begin_sign_in(services, redirect_uri, request.query_params.get("next"))
    except _FAULTS as error:
        return await _with_fault(request, services, error)
    return _redirect(address, _attempt_cookie(request, sealed, ATTEMPT_SECONDS))


@get(f"{PATH}/callback", include_in_schema=False, media_type=MediaType.HTML)
async def get_callback(request: AnyRequest, services: InjectedServices) -> Response[str] | Template:
    """Sign in as the user of the provider's account; if that is not possible, show why on the sign-in page."""
    scope, query = scope_of(request), request.query_params
    check_navigation(scope)
    answer = ProviderAnswer(
        state=query.get("state", ""),
        authorization_code=query.get("code", ""),
        error=query.get("error", ""),
        iss=query.get("iss"),
    )
    sealed, used = request.cookies.get(_attempt_name(request)), _attempt_cookie(request, "", 0)
    try:
        session = await finish_sign_in(services, answer, sealed, client_of(scope))
    except _FAULTS as error:
        shown = await _with_fault(request, services, error)
        if not isinstance(error, LimitReached):  # a reload can help then, as nothing was used
            shown.cookies.append(used)
        return shown
    id_token = session.id_token if len(session.id_token) <= MAX_ID_TOKEN_LENGTH else ""
    response = _redirect(session.next_path, used, _id_token_cookie(request, id_token))
    _, cookie = session_cookie(scope, session.token, SESSION_SECONDS)
    response.headers["set-cookie"] = cookie.decode()
    return response


@get(f"{PATH}/sign-out", include_in_schema=False, media_type=MediaType.HTML)
async def get_sign_out(
    request: AnyRequest, services: InjectedServices, door_settings: InjectedSettings
) -> Response[str] | Template:
    """Redirect the browser to the sign-out of the provider; the session here has ended before."""
    check_same_site(scope_of(request))
    back = f"{_public_address(request, door_settings)}/dashboard/sign-in"
    try:
        address = await sign_out_address(services, back, request.cookies.get(ID_TOKEN_COOKIE))
    except _FAULTS as error:
        return await _with_fault(request, services, error)
    return _redirect(address or "/dashboard/sign-in", _id_token_cookie(request, ""))


def _public_address(request: AnyRequest, door_settings: DoorSettings) -> str:
    """Return the address at which browsers reach this server: that of the settings, else that of the request."""
    return door_settings.public_url or address_of(request)


async def _with_fault(request: AnyRequest, services: Services, error: SignoffError) -> Template:
    """Return the sign-in page with the message of `error`."""
    shown = await sign_in_page(request, services, error=error.message)
    shown.status_code = error.status
    shown.headers |= dict(error_headers(error))
    return shown


def _redirect(location: str, *cookies: Cookie) -> Response[str]:
    headers = {"location": location, "cache-control": "no-store", "referrer-policy": "no-referrer"}
    return Response("", status_code=303, headers=headers, cookies=cookies, media_type=MediaType.HTML)


def _is_secure(request: AnyRequest) -> bool:
    return scheme_of(scope_of(request)) == "https"


def _attempt_name(request: AnyRequest) -> str:
    return SECURE_ATTEMPT_COOKIE if _is_secure(request) else ATTEMPT_COOKIE


def _attempt_cookie(request: AnyRequest, sealed: str, seconds: int) -> Cookie:
    """Return the cookie of a sign-in that has begun; it is `SameSite=Lax`, as another site redirects here."""
    return Cookie(
        key=_attempt_name(request),
        value=sealed,
        max_age=seconds,
        httponly=True,
        samesite="lax",
        secure=_is_secure(request),
    )


def _id_token_cookie(request: AnyRequest, id_token: str) -> Cookie:
    return Cookie(
        key=ID_TOKEN_COOKIE,
        value=id_token,
        path=root_of(request) + PATH,
        max_age=int(SESSION_SECONDS) if id_token else 0,
        httponly=True,
        samesite="strict",
        secure=_is_secure(request),
    )


router = Router("/", route_handlers=[get_begin, get_callback, get_sign_out])
