"""Signing in with a password or a link, and signing out."""

import msgspec
import structlog

from signoff.core.access import User
from signoff.core.api_tokens import PREFIX, hash_token
from signoff.core.sign_in import sign_in_limits
from signoff.errors import Conflict, LimitReached, PasswordsOff, TokenExpired, Unauthorized
from signoff.work.admin.people import create_token, identify, is_email
from signoff.work.services import Services

SESSION_SECONDS = 14 * 24 * 3600.0
# Name of a session that began at the OpenID Connect provider.
OIDC_SESSION = "oidc"
WRONG = "The e-mail address or the password is wrong."
LINK_IS_USED = "This sign-in link was used already, or is too old. An admin makes a new one: signoff user link EMAIL"
log = structlog.get_logger()


async def sign_in(services: Services, email: str, password: str, client: str) -> str:
    """Return a session token for the password of a user; `client` is the address of the client.

    Raises Unauthorized, and LimitReached after too many failures of this e-mail address or client, or if too many
    people sign in at once. Error, work and time are the same for an unknown user and a wrong password.
    Raises PasswordsOff if the settings say so.
    """
    if not services.rules.password_sign_in:
        raise PasswordsOff
    try:
        with services.runtime.passwords.slot():
            user = await _check_password(services, email, password, client)
    except LimitReached as error:
        limited_email = email if is_email(email) else None
        log.warning("sign_in_limited", error=error.message, client=client, email=limited_email)
        raise
    try:
        return await create_token(services, user, kind="session", name="password", seconds=SESSION_SECONDS)
    except Conflict:
        raise Unauthorized(WRONG) from None


async def _check_password(services: Services, email: str, password: str, client: str) -> User:
    """Return the user with this password. Raises Unauthorized, LimitReached."""
    limits = sign_in_limits(email, client)
    denial = await services.store.sign_ins.begin(limits)
    if denial is not None:
        message = "Too many failed sign-ins; wait, or ask an admin for a sign-in link."
        raise LimitReached(message, retry_after_seconds=denial.seconds)
    user = await services.store.people.user(email)
    password_hash = user.password_hash if user is not None and user.active else None
    is_right = await services.runtime.passwords.verify(password_hash, password)
    if user is None or password_hash is None or not is_right:
        raise Unauthorized(WRONG)
    await services.store.sign_ins.succeed(*limits)
    if services.runtime.passwords.is_outdated(password_hash):
        new_hash = await services.runtime.passwords.hash(password)
        await services.store.people.replace_password_hash(user.id, password_hash, new_hash)
        return msgspec.structs.replace(user, password_hash=new_hash)
    return user


async def sign_in_with_link(services: Services, code: str) -> str:
    """Return a session token for the code of a sign-in link, which works once. Raises Unauthorized."""
    token = PREFIX + code
    try:
        caller = await identify(services, token, "signin")
    except Unauthorized:
        raise Unauthorized(LINK_IS_USED) from None
    user = await services.store.people.user(caller.email)
    if not await services.store.people.end_token(hash_token(token)) or user is None or not user.active:
        raise Unauthorized(LINK_IS_USED)
    try:
        return await create_token(services, user, kind="session", name="link", seconds=SESSION_SECONDS)
    except Conflict:
        raise Unauthorized(LINK_IS_USED) from None


async def sign_out(services: Services, token: str) -> bool:
    """End the session of `token`; return True if it began at the OpenID Connect provider."""
    try:
        row = await services.store.people.token(hash_token(token))
    except TokenExpired:
        row = None
    await services.store.people.end_token(hash_token(token))
    services.caches.callers.invalidate()
    return row is not None and row[0].kind == "session" and row[0].name == OIDC_SESSION
