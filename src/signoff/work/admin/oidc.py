"""Signing in by an OpenID Connect provider: the authorization code flow with PKCE, state and nonce."""

import hmac
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
import structlog

from signoff.core.audit import Actor
from signoff.core.oidc import (
    ProviderAccount,
    SignInAttempt,
    account_of,
    code_challenge,
    has_all_claims,
    is_subject,
    provider_error_text,
)
from signoff.core.sign_in import checked_next
from signoff.core.times import SECOND_US
from signoff.errors import BadRequest, Conflict, NotFound, ProviderFailed, SignInExpired, SignInRefused
from signoff.infra.actor import act_as
from signoff.infra.vault import Unreadable
from signoff.runtime.identity_provider import IdentityProvider, ProviderTokens
from signoff.work.admin.people import create_token, is_email
from signoff.work.admin.sign_in import OIDC_SESSION, SESSION_SECONDS
from signoff.work.services import Services

ATTEMPT_SECONDS = 600
MAX_CODE_LENGTH = 4096
T = TypeVar("T")
log = structlog.get_logger()


class SignInMethods(msgspec.Struct, frozen=True, kw_only=True):
    """Ways to sign in that the settings allow; one-time links always work."""

    password: bool
    """True for passwords."""
    provider: str | None
    """Name of the OpenID Connect provider; None without one."""


class ProviderAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters with which the provider sends a browser back (RFC 6749, section 4.1.2, and RFC 9207)."""

    state: str = ""
    """`state` of the attempt that it answers."""
    authorization_code: str = ""
    """`code`, which buys the tokens once; empty for an error."""
    error: str = ""
    """Code of an error; empty for none."""
    iss: str | None = None
    """Issuer; None if the provider does not send it."""


class ProviderSession(msgspec.Struct, frozen=True, kw_only=True):
    """Session that began at the provider."""

    token: str
    """Token of the session."""
    next_path: str
    """Path to which the sign-in leads."""
    id_token: str
    """ID token, for the sign-out at the provider."""


def sign_in_methods(services: Services) -> SignInMethods:
    """Return the ways to sign in."""
    provider = services.runtime.identity_provider
    return SignInMethods(
        password=services.rules.password_sign_in, provider=None if provider is None else provider.settings.name
    )


async def begin_sign_in(services: Services, redirect_uri: str, next_path: str | None) -> tuple[str, str]:
    """Return the address at the provider that begins a sign-in, and the sealed attempt for the browser's cookie.

    Raises NotFound without a provider, ProviderFailed.
    """
    provider = _provider(services)
    metadata = await _logged(provider.metadata(), "begin")
    new_secret = services.ids.new_secret
    attempt = SignInAttempt(
        state=new_secret(),
        nonce=new_secret(),
        verifier=new_secret() + new_secret(),  # at least 43 characters (RFC 7636, section 4.1)
        redirect_uri=redirect_uri,
        next_path=checked_next(next_path),
        began_at=services.clock(),
    )
    parameters = {
        "response_type": "code",
        "client_id": provider.settings.client_id,
        "redirect_uri": redirect_uri,
        "scope": " ".join(provider.settings.scopes),
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": code_challenge(attempt.verifier),
        "code_challenge_method": "S256",
    }
    sealed = services.adapters.vault.seal(msgspec.json.encode(attempt).decode()).decode().rstrip("=")
    return _with_query(metadata.authorization_endpoint, parameters), sealed


async def finish_sign_in(
    services: Services, answer: ProviderAnswer, sealed: str | None, client: str
) -> ProviderSession:
    """Return the session for the answer of the provider to the attempt that the browser's cookie has.

    `client` is the address of the client.

    Raises:
        NotFound: There is no provider.
        SignInExpired: The answer is not one to this attempt, or came too late, or the code was used before.
        SignInRefused: The provider, or a rule of the settings, refuses the account.
        ProviderFailed: The provider fails, or what it says cannot be used.
        LimitReached: Too many people sign in at once.
    """
    provider = _provider(services)
    act_as(Actor(name="oidc", client=client or None))
    with provider.slot():
        return await _logged(_finish(services, provider, answer, _open(services, sealed)), "finish", client)


async def _finish(
    services: Services, provider: IdentityProvider, answer: ProviderAnswer, attempt: SignInAttempt
) -> ProviderSession:
    await _check_answer(provider, answer, attempt)
    tokens = await provider.redeem(answer.authorization_code, attempt)
    claims = await provider.verify(tokens.id_token, attempt.nonce, services.clock() // SECOND_US)
    account = account_of(await _completed(provider, tokens, claims), provider.settings)
    if account.email is not None and not is_email(account.email):
        account = msgspec.structs.replace(account, email=None)
    token = await _admit(services, provider, account)
    return ProviderSession(token=token, next_path=attempt.next_path, id_token=tokens.id_token)


def _open(services: Services, sealed: str | None) -> SignInAttempt:
    """Return the attempt in a cookie. Raises SignInExpired."""
    try:
        padded = (sealed or "") + "=" * (-len(sealed or "") % 4)  # cookies need quotes around `=`
        attempt = msgspec.json.decode(services.adapters.vault.open(padded.encode()), type=SignInAttempt)
    except (Unreadable, ValueError):
        raise SignInExpired from None
    if not 0 <= services.clock() - attempt.began_at < ATTEMPT_SECONDS * SECOND_US:
        raise SignInExpired
    return attempt


async def _check_answer(provider: IdentityProvider, answer: ProviderAnswer, attempt: SignInAttempt) -> None:
    """Raise an error unless the answer has a code, and is one of this provider to this attempt."""
    if not hmac.compare_digest(answer.state.encode(), attempt.state.encode()):
        raise SignInExpired
    must_have_issuer = (await provider.metadata()).authorization_response_iss_parameter_supported
    if (answer.iss is not None or must_have_issuer) and answer.iss != provider.settings.issuer:
        raise SignInRefused("The answer is one of another provider (`iss`). Begin the sign-in again.")
    if answer.error:
        raise SignInRefused(provider_error_text(answer.error, provider.settings.name))
    if not 0 < len(answer.authorization_code) <= MAX_CODE_LENGTH:
        raise SignInExpired


async def _completed(
    provider: IdentityProvider, tokens: ProviderTokens, claims: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the claims, with those of the user information if one that the settings need is missing."""
    if has_all_claims(claims, provider.settings) or tokens.access_token is None:
        return claims
    more = await provider.user_information(tokens.access_token, claims["sub"])
    # An address and the mark that it is verified come from one source.
    of_address = {name: more.get(name) for name in ("email", "email_verified")} if "email" in more else {}
    return {**more, **claims, **of_address}


async def _admit(services: Services, provider: IdentityProvider, account: ProviderAccount) -> str:
    """Create or update the user of an account, and return a token of a new session. Raises SignInRefused."""
    try:
        user = await services.store.people.sign_in(account, provider.settings)
    except SignInRefused:
        # An account that has lost its role at the provider must not go on with an older session.
        bound = await services.store.people.user_of_account(account.issuer, account.subject)
        if bound is not None and bound.active:
            await services.store.people.end_sessions(bound.id)
        raise
    except Conflict as error:  # the provider takes the role from the last active admin
        raise SignInRefused(error.message) from None
    try:
        return await create_token(services, user, kind="session", name=OIDC_SESSION, seconds=SESSION_SECONDS)
    except Conflict:
        raise SignInExpired from None


async def offers_sign_out(services: Services) -> bool:
    """Return True if there is a provider, and browsers can be signed out there too."""
    provider = services.runtime.identity_provider
    try:
        return provider is not None and (await provider.metadata()).end_session_endpoint is not None
    except ProviderFailed:
        return False


async def sign_out_address(services: Services, return_to: str, id_token: str | None) -> str | None:
    """Return the address that signs the browser out at the provider, if it has one (RP-Initiated Logout 1.0).

    `return_to` is the address to which the provider leads afterwards. Raises NotFound, ProviderFailed.
    """
    provider = _provider(services)
    address = (await provider.metadata()).end_session_endpoint
    if address is None:
        return None
    parameters = {"client_id": provider.settings.client_id, "post_logout_redirect_uri": return_to}
    return _with_query(address, parameters | ({} if id_token is None else {"id_token_hint": id_token}))


async def bind_account(services: Services, user_id: int, subject: str) -> None:
    """Bind the account `subject` of the provider to a user.

    Raises NotFound without a provider, BadRequest, and Conflict if either is bound already.
    """
    if not is_subject(subject):
        raise BadRequest(f"`subject` must be 1 to 255 printable characters (got {len(subject)}).")
    await services.store.people.bind_account(user_id, _provider(services).settings.issuer, subject)


def _provider(services: Services) -> IdentityProvider:
    """Return the provider. Raises NotFound without one."""
    provider = services.runtime.identity_provider
    if provider is None:
        raise NotFound("There is no OpenID Connect provider; an operator sets one by `oidc_issuer`.")
    return provider


def _with_query(address: str, parameters: Mapping[str, str]) -> str:
    return f"{address}{'&' if '?' in address else '?'}{urlencode(parameters)}"


async def _logged(step: Awaitable[T], name: str, client: str = "") -> T:
    """Return the result of a step; log its error, as the person who sees it is not the operator."""
    try:
        return await step
    except (ProviderFailed, SignInRefused, SignInExpired) as error:
        log.warning("oidc_sign_in_failed", step=name, code=error.code, error=error.message, client=client)
        raise
