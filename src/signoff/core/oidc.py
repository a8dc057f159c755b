"""Sign-in by OpenID Connect: the settings of a provider, its answers, and which account may sign in as which user.

The terms are those of OpenID Connect Core 1.0 and OpenID Connect Discovery 1.0.
"""

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from signoff.core.access import ROLES, Role, User
from signoff.errors import ProviderFailed, SignInRefused

MAX_SUBJECT_LENGTH = 255
# Characters of an error code (RFC 6749, section 4.1.2.1), as far as they are shown.
_CODE = re.compile(r"[a-z_]{1,64}")
# Errors with which a provider sends a browser back, and what to do.
_ERROR_TEXTS = {
    "access_denied": "{name} did not let you in, or you cancelled. Ask for access there, or begin the sign-in again.",
    "login_required": "You are not signed in at {name}. Begin the sign-in again.",
    "interaction_required": "{name} needs something of you first. Open its own page, then begin the sign-in again.",
    "consent_required": "You did not agree that {name} may tell who you are. Begin the sign-in again, and agree.",
    "account_selection_required": "You did not choose an account at {name}. Begin the sign-in again.",
    "temporarily_unavailable": "{name} is overloaded or being repaired. Try again in some minutes.",
    "server_error": "{name} failed. Try again in some minutes; if that does not help, tell its operator.",
    "unauthorized_client": "{name} does not let this client sign people in. An operator must allow it there.",
    "unsupported_response_type": "{name} does not allow the code flow. An operator must allow it for the client there.",
    "invalid_scope": "{name} refuses a scope. An operator must change `oidc_scopes`, or allow it there.",
    "invalid_request": "{name} refuses the request. An operator must compare the client there with the settings.",
}


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """OpenID Connect provider, and its rules. Each field comes from the setting `oidc_` with its name."""

    issuer: str
    """Issuer, which begins the address of the discovery document."""
    client_id: str
    """Id of this server at the provider."""
    scopes: Sequence[str] = ("openid", "email", "profile")
    """Scopes that are asked for."""
    name: str = "single sign-on"
    """Name of the provider in texts for people."""
    email_claim: str = "email"
    """Path of the claim with the e-mail address."""
    trust_email: bool = False
    """True if an address counts as verified without the claim `email_verified`; not if that is false."""
    role_claim: str | None = None
    """Path of the claim that decides the role; None to leave roles to the admins here."""
    roles: Mapping[str, Role] = {}
    """Roles by values of that claim."""
    default_role: Role | None = None
    """Role of an account without such a value; None to refuse it."""
    create_users: bool = True
    """True to create the user of an account that signs in for the first time."""
    link_users: bool = False
    """True to let an account sign in as the user who has its verified address already."""


class ProviderMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Discovery document of a provider, as far as it is used; the fields have its names."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    code_challenge_methods_supported: tuple[str, ...] | None = None
    authorization_response_iss_parameter_supported: bool = False

    @property
    def endpoints(self) -> dict[str, str]:
        """Endpoints by their names in the document."""
        names = [name for name in self.__struct_fields__ if name.endswith(("_endpoint", "_uri"))]
        return {name: url for name in names if (url := getattr(self, name)) is not None}


class SignInAttempt(msgspec.Struct, frozen=True, kw_only=True, tag="oidc_sign_in"):
    """Sign-in that has begun. The browser has it in a cookie, sealed."""

    state: str
    """Secret that the provider sends back through the browser."""
    nonce: str
    """Secret that the provider writes into the ID token."""
    verifier: str
    """Secret whose digest the provider gets first, and which redeems the code (PKCE, RFC 7636)."""
    redirect_uri: str
    """Address to which the provider sends the browser back."""
    next_path: str
    """Path to which the sign-in leads."""
    began_at: int
    """Microseconds since 1970, UTC."""


class ProviderAccount(msgspec.Struct, frozen=True, kw_only=True):
    """Account at a provider, from claims that were verified."""

    issuer: str
    """Issuer of the claims."""
    subject: str
    """Id of the account, which its provider never gives to another one."""
    email: str | None = None
    """Verified address in lower case; None if there is none."""
    role: Role | None = None
    """Role by the claims; None if they have none and there is no default."""


SignInKind = Literal["enter", "link", "create"]


def code_challenge(verifier: str) -> str:
    """Return the digest of a verifier, by the method S256 (RFC 7636, section 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def provider_error_text(code: str, name: str) -> str:
    """Return a sentence for the error `code` with which a provider called `name` sends a browser back."""
    if (text := _ERROR_TEXTS.get(code)) is not None:
        return text.format(name=name)
    shown = f" `{code}`" if _CODE.fullmatch(code) else ""
    return f"{name} ended the sign-in with the error{shown}, which is not known here. Its log says more."


def check_metadata(metadata: ProviderMetadata, issuer: str) -> None:
    """Raise ProviderFailed unless the document is that of `issuer`, and its endpoints can be used."""
    if metadata.issuer != issuer:
        raise ProviderFailed(
            f"The discovery document is of the issuer {metadata.issuer[:200]!r}, and `oidc_issuer` is {issuer!r}; "
            "they must be equal. Set `oidc_issuer` to the issuer of the document if it is the right one."
        )
    schemes = ("https://",) if issuer.startswith("https://") else ("https://", "http://")
    for name, url in metadata.endpoints.items():
        if not url.startswith(schemes) or not (url.isascii() and url.isprintable()) or " " in url:
            raise ProviderFailed(
                f"`{name}` of the discovery document must be a URL that begins with {schemes[0]} (got {url[:200]!r})."
            )
    methods = metadata.code_challenge_methods_supported
    if methods and "S256" not in methods:
        raise ProviderFailed("The provider does not support PKCE with S256; allow it there.")


def claim_at(claims: Mapping[str, Any], path: str) -> object:
    """Return the claim at a dotted path, such as `realm_access.roles`; None if there is none.

    A claim whose name itself has dots, such as an address, is found by that name.

    >>> claim_at({"realm_access": {"roles": ["a"]}, "https://x.org/roles": "b"}, "realm_access.roles")
    ['a']
    """
    if path in claims:
        return claims[path]
    head, _, rest = path.partition(".")
    inner = claims.get(head)
    return claim_at(cast("Mapping[str, Any]", inner), rest) if rest and isinstance(inner, dict) else None


def is_subject(text: str) -> bool:
    """Return True if `text` can be the id of an account."""
    return 0 < len(text) <= MAX_SUBJECT_LENGTH and text.isprintable()


def account_of(claims: Mapping[str, Any], settings: ProviderSettings) -> ProviderAccount:
    """Return the account of verified claims. Raises SignInRefused if its id cannot be used."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not is_subject(subject):
        raise SignInRefused(f"{settings.name} gave no id of your account (`sub`) that can be used.")
    return ProviderAccount(
        issuer=settings.issuer,
        subject=subject,
        email=_email(claims, settings),
        role=_role(claims, settings),
    )


def has_all_claims(claims: Mapping[str, Any], settings: ProviderSettings) -> bool:
    """Return True if the claims have all that decides, so that the provider need not be asked for more."""
    needed = [settings.email_claim, *([] if settings.role_claim is None else [settings.role_claim])]
    needed += [] if settings.trust_email else ["email_verified"]
    return all(claim_at(claims, path) is not None for path in needed)


def _email(claims: Mapping[str, Any], settings: ProviderSettings) -> str | None:
    email = claim_at(claims, settings.email_claim)
    # Some providers send a text; only of the claim `email` itself does `email_verified` speak.
    mark = claims.get("email_verified") if settings.email_claim == "email" else None
    is_trusted = settings.trust_email and mark not in (False, "false")
    if not isinstance(email, str) or not (mark in (True, "true") or is_trusted):
        return None
    return email.lower() if email.isprintable() and not _has_lookalike(email) else None


def _has_lookalike(email: str) -> bool:
    """Return True if a character becomes an ASCII letter in lower case without being one, such as the Kelvin sign."""
    return any(not char.isascii() and any(map(str.isascii, char.lower())) for char in email)


def _role(claims: Mapping[str, Any], settings: ProviderSettings) -> Role | None:
    """Return the role with the most rights among the values of the claim."""
    if settings.role_claim is None:
        return settings.default_role
    value = claim_at(claims, settings.role_claim)
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    roles: set[Role] = {settings.roles[each] for each in values if isinstance(each, str) and each in settings.roles}
    return min(roles, key=ROLES.index) if roles else settings.default_role


def sign_in_kind(
    account: ProviderAccount, settings: ProviderSettings, *, bound: User | None, namesake: User | None, is_taken: bool
) -> SignInKind:
    """Return how an account signs in: as its user, as a user whom it is bound to now, or as a new user.

    Args:
        account: The account.
        settings: The rules.
        bound: The user to whom the account is bound; None at its first sign-in.
        namesake: The user with the address of the account.
        is_taken: True if the namesake is bound to another account of the same issuer.

    Raises:
        SignInRefused: The account may not sign in.
    """
    if bound is not None:
        _check_may_enter(bound, account, settings)
        return "enter"
    if account.email is None:
        raise SignInRefused(
            f"{settings.name} gave no e-mail address that it has verified. Verify your address there, and begin the "
            "sign-in again; an operator finds more on this in the guide to OpenID Connect."
        )
    if namesake is None:
        if not settings.create_users:
            raise SignInRefused(f"There is no user {account.email} here. Ask an admin to create one.")
        if account.role is None:
            raise SignInRefused(_without_role(settings))
        return "create"
    if is_taken:
        raise SignInRefused(
            f"The user {account.email} belongs to another account at {settings.name}. "
            f"If that is yours too, ask an operator to run: signoff user unbind {shlex.quote(account.email)}"
        )
    if not settings.link_users:
        raise SignInRefused(
            f"There is a user {account.email} already, who does not sign in by {settings.name} yet. Ask an operator to "
            f"run: signoff user bind {shlex.quote(account.email)} {shlex.quote(account.subject)}"
        )
    _check_may_enter(namesake, account, settings)
    return "link"


def _check_may_enter(user: User, account: ProviderAccount, settings: ProviderSettings) -> None:
    if not user.active:
        raise SignInRefused("Your user is disabled here. Ask an admin to enable it.")
    if settings.role_claim is not None and account.role is None:
        raise SignInRefused(_without_role(settings))


def _without_role(settings: ProviderSettings) -> str:
    return (
        f"Your account at {settings.name} has no role here. Ask to be added to a group that has one; "
        "an operator sets which ones have, by `oidc_roles` and `oidc_default_role`."
    )


def role_at_sign_in(user: User, account: ProviderAccount, settings: ProviderSettings) -> Role:
    """Return the role of a user from now on: that of the claims, or the present one if no claim decides."""
    return user.role if settings.role_claim is None or account.role is None else account.role
