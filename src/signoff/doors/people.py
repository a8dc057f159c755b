"""The native API of users, tokens and sessions: admins manage all, users their own tokens and sessions."""

from typing import Annotated, Any

from litestar import Router, delete, get, patch, post
from litestar.params import FromPath, FromQuery, QueryParameter

from signoff.core.access import Caller, Token, TokenKind, User, check_admin
from signoff.core.wire import format_time
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import INTS, parse_json
from signoff.errors import BadRequest, Forbidden
from signoff.work.admin.erasure import begin_erasure
from signoff.work.admin.issue import NewToken, TokenRequest, issue_token
from signoff.work.admin.people import (
    NewUser,
    UserChange,
    add_user,
    change_user,
    end_sessions,
    find_user,
    list_tokens,
    list_users,
    revoke_token,
)
from signoff.work.services import Services

MAX_PAGE = 1000
After = Annotated[int, QueryParameter(ge=0, lt=INTS)]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]


@get("/users", summary="List users")
async def get_users(
    services: InjectedServices, caller: InjectedCaller, after: After = 0, limit: Limit = 50
) -> dict[str, Any]:
    """Return a page of all users for an admin, and the caller alone for others.

    Pass `next` as `after` to get the next page.
    """
    users = await list_users(services, check_token(caller), after_id=after, limit=limit)
    return {"data": [_user_json(user) for user in users], "next": users[-1].id if len(users) == limit else None}


@post("/users", status_code=201, summary="Create a user")
async def post_user(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Create a user and return it.

    Without a password, the user signs in by a link of `signoff user link`, or by an OpenID Connect provider.
    """
    new = parse_json(await request.body(), NewUser, "user")
    return _user_json(await add_user(services, check_token(caller), new))


@patch("/users/{user:str}", summary="Change, disable or enable a user")
async def patch_user(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, user: FromPath[str]
) -> dict[str, Any]:
    """Change the user and return it; fewer rights and a new password end their sessions within a second."""
    change = parse_json(await request.body(), UserChange, "change of a user")
    user_id = (await find_user(services, check_token(caller), user)).id
    return _user_json(await change_user(services, caller, user_id, change))


@delete("/users/{user:str}", status_code=202, summary="Erase a user")
async def delete_user(
    services: InjectedServices,
    caller: InjectedCaller,
    user: FromPath[str],
    erase: FromQuery[bool] = False,  # noqa: FBT002 -- Litestar passes it by name
) -> dict[str, Any]:
    """Disable a user for good, and erase all that they sent and got; servers do so in the background.

    `erase=true` confirms this, as it cannot be undone.
    """
    check_admin(check_token(caller))
    if not erase:
        raise BadRequest(
            "`erase` must be true to erase all that the user sent and got; use `PATCH` to disable the user."
        )
    user_id = (await find_user(services, caller, user)).id
    await begin_erasure(services, caller, user_id)
    return {"id": user_id, "status": "erasing"}


@post("/tokens", status_code=201, summary="Create a token")
async def post_token(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> NewToken:
    """Create a token and return it with its id; it is never shown again."""
    new = parse_json(await request.body(), TokenRequest, "token")
    return await issue_token(services, check_token(caller), new)


@get("/tokens", summary="List tokens")
async def get_tokens(
    services: InjectedServices, caller: InjectedCaller, after: After = 0, limit: Limit = 50
) -> dict[str, Any]:
    """Return a page of the API tokens that are not revoked: all for an admin, the caller's own for others."""
    return await _page(services, caller, "api", after, limit)


@delete("/tokens/{token_id:int}", status_code=204, summary="Revoke a token")
async def delete_token(services: InjectedServices, caller: InjectedCaller, token_id: FromPath[int]) -> None:
    """Revoke the token; all processes refuse it within a second."""
    await revoke_token(services, check_token(caller), "api", token_id)


@get("/sessions", summary="List sessions")
async def get_sessions(
    services: InjectedServices, caller: InjectedCaller, after: After = 0, limit: Limit = 50
) -> dict[str, Any]:
    """Return a page of the sessions that have not ended: all for an admin, the caller's own for others."""
    return await _page(services, caller, "session", after, limit)


@delete("/sessions/{session_id:int}", status_code=204, summary="End a session")
async def delete_session_by_id(services: InjectedServices, caller: InjectedCaller, session_id: FromPath[int]) -> None:
    """End the session; all processes refuse it within a second."""
    await revoke_token(services, check_token(caller), "session", session_id)


@delete("/sessions", status_code=200, summary="Sign out everywhere")
async def delete_sessions(
    services: InjectedServices,
    caller: InjectedCaller,
    user_id: Annotated[int | None, QueryParameter(ge=0, lt=INTS)] = None,
) -> dict[str, int]:
    """End all sessions and sign-in links of the caller, or of the user `user_id` for an admin; return their number."""
    owner_id = check_token(caller).user_id if user_id is None else user_id
    return {"ended": await end_sessions(services, check_token(caller), owner_id)}


async def _page(services: Services, caller: Caller, kind: TokenKind, after: int, limit: int) -> dict[str, Any]:
    page = await list_tokens(services, check_token(caller), kind, after_id=after, limit=limit)
    now = services.clock()
    tokens = [_token_json(caller, token, user, now) for token, user in page]
    return {"data": tokens, "next": page[-1][0].id if len(page) == limit else None}


def check_token(caller: Caller) -> Caller:
    """Return the caller. Raises Forbidden for one without a token or session, whatever `anonymous_role` allows."""
    if caller.token_id == 0:
        raise Forbidden("Users, tokens and sessions need a token or a session; `anonymous_role` does not cover them.")
    return caller


def _user_json(user: User) -> dict[str, Any]:
    return {"id": user.id, "email": user.email, "role": user.role, "active": user.active}


def _token_json(caller: Caller, token: Token, user: User, now: int) -> dict[str, Any]:
    is_over = token.expires_at is not None and token.expires_at <= now
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "user_id": user.id,
        "email": user.email,
        "created_at": format_time(token.created_at),
        "expires_at": None if token.expires_at is None else format_time(token.expires_at),
        "last_used_at": None if token.last_used_at is None else format_time(token.last_used_at),
        "active": token.active and user.active and not is_over,
        "current": token.id == caller.token_id,
    }


router = Router(
    "/api",
    route_handlers=[
        get_users,
        post_user,
        patch_user,
        delete_user,
        post_token,
        get_tokens,
        delete_token,
        get_sessions,
        delete_session_by_id,
        delete_sessions,
    ],
    tags=["people"],
)
