"""The OpenID Connect provider: its discovery document and keys, and the requests of a sign-in."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote_plus, urlsplit

import msgspec
import structlog

from signoff.core.oidc import ProviderMetadata, ProviderSettings, SignInAttempt, check_metadata
from signoff.errors import LimitReached, ProviderFailed, SignInExpired
from signoff.infra.id_tokens import (
    ClocksDiffer,
    ExpectedClaims,
    IdTokenRefused,
    KeyMissing,
    import_keys,
    verify_id_token,
)
from signoff.infra.json_client import JsonClient, RequestFailed

if TYPE_CHECKING:
    from joserfc.jwk import Key

DISCOVERY_PATH = "/.well-known/openid-configuration"
FRESH_SECONDS = 3600.0
# Shortest time between two loads: of keys because of tokens whose key is unknown, and after a failure.
KEY_SECONDS = 60.0
FAILURE_SECONDS = 5.0
# Sign-ins that wait for the provider at the same time.
MAX_EXCHANGES = 16
RETRY_SECONDS = 2.0
T = TypeVar("T")
log = structlog.get_logger()


class _Loaded(Generic[T]):
    """Value that is loaded once for all who wait for it, and again when it is old; a failure is kept for a moment."""

    def __init__(self, load: Callable[[], Awaitable[T]], now: Callable[[], float]) -> None:
        self._load = load
        self._now = now
        self._lock = asyncio.Lock()
        self._value: T | None = None
        self._loaded_at = 0.0
        self._failure: ProviderFailed | None = None
        self._failed_at = 0.0

    async def get(self, *, max_age_seconds: float = FRESH_SECONDS) -> T:
        """Return the value, loaded at most `max_age_seconds` ago. Raises ProviderFailed."""
        async with self._lock:
            if self._value is not None and self._now() - self._loaded_at < max_age_seconds:
                return self._value
            if self._failure is not None and self._now() - self._failed_at < FAILURE_SECONDS:
                raise self._failure.copy()
            try:
                self._value = await self._load()
            except ProviderFailed as error:
                self._failure, self._failed_at = error.copy(), self._now()
                raise
            self._loaded_at, self._failure = self._now(), None
            return self._value


class ProviderTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of the token endpoint, as far as it is used."""

    id_token: str
    """ID token, not verified yet."""
    access_token: str | None = None
    """Token for the user information."""


class IdentityProvider:
    """Client of the provider in `settings`.

    `read_secret` returns the secret of this server, or None for a public client, which PKCE alone protects; it raises
    ValueError with the reason if there should be one. `now` returns seconds that never go back.
    """

    def __init__(
        self,
        settings: ProviderSettings,
        client: JsonClient,
        *,
        read_secret: Callable[[], str | None],
        now: Callable[[], float],
    ) -> None:
        self.settings = settings
        """The provider, and its rules."""
        self._client = client
        self._read_secret = read_secret
        self._metadata = _Loaded(self._load_metadata, now)
        self._keys = _Loaded(self._load_keys, now)
        self._exchanges = 0

    async def metadata(self) -> ProviderMetadata:
        """Return the discovery document. Raises ProviderFailed."""
        return await self._metadata.get()

    async def describe(self) -> str:
        """Return a sentence on the state of the provider, for `signoff doctor`. Raises ProviderFailed, ValueError."""
        self._read_secret()
        metadata, keys = await self.metadata(), await self._keys.get()
        sign_out = "sign-out there too" if metadata.end_session_endpoint else "no sign-out there"
        return f"{metadata.issuer} responds; keys: {len(keys)}; {sign_out}"

    @contextlib.contextmanager
    def slot(self) -> Generator[None]:
        """Admit the block, which sends requests to the provider. Raises LimitReached if MAX_EXCHANGES others run."""
        if self._exchanges >= MAX_EXCHANGES:
            message = "Too many people are signing in now; try again in some seconds."
            raise LimitReached(message, retry_after_seconds=RETRY_SECONDS)
        self._exchanges += 1
        try:
            yield
        finally:
            self._exchanges -= 1

    async def redeem(self, code: str, attempt: SignInAttempt) -> ProviderTokens:
        """Return the tokens for a code, which works once. Raises ProviderFailed, SignInExpired."""
        metadata = await self.metadata()
        form, headers = self._authentication(metadata)
        form |= {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": attempt.redirect_uri,
            "code_verifier": attempt.verifier,
        }
        status, answer = await self._post(metadata.token_endpoint, form, headers)
        if status != 200:
            raise self._refusal(status, answer)
        try:
            return msgspec.convert(answer, ProviderTokens)
        except msgspec.ValidationError:
            raise self._failed("its token endpoint gave no ID token; the scope `openid` must be allowed") from None

    async def verify(self, id_token: str, nonce: str, now: int) -> dict[str, Any]:
        """Return the claims of an ID token for `nonce`, at `now` in seconds since 1970. Raises ProviderFailed.

        If no key fits, the keys are loaded again, but not more often than every KEY_SECONDS.
        """
        settings = self.settings
        expected = ExpectedClaims(issuer=settings.issuer, client_id=settings.client_id, nonce=nonce, now=now)
        keys = await self._keys.get()
        try:
            try:
                return verify_id_token(id_token, keys, expected)
            except KeyMissing:
                keys = await self._keys.get(max_age_seconds=KEY_SECONDS)
                return verify_id_token(id_token, keys, expected)
        except ClocksDiffer as error:
            raise self._failed(f"{error}: the clocks of {settings.name} and of this server differ; set both") from None
        except IdTokenRefused as error:
            raise self._failed(str(error)) from None

    async def user_information(self, access_token: str, subject: str) -> dict[str, Any]:
        """Return the claims of the user-information endpoint about `subject`; none if there is no such endpoint.

        Raises ProviderFailed.
        """
        metadata = await self.metadata()
        if metadata.userinfo_endpoint is None:
            return {}
        try:
            headers = {"authorization": f"Bearer {access_token}"}
            status, claims = await self._client.get(metadata.userinfo_endpoint, headers)
        except RequestFailed as error:
            raise self._failed(str(error)) from error
        if status != 200:
            raise self._failed(f"its user information was refused, with the status {status}")
        if claims.get("sub") != subject:  # section 5.3.2: it may be about somebody else
            raise self._failed("its user information is about another account")
        return claims

    async def _load_metadata(self) -> ProviderMetadata:
        document = await self._get(self.settings.issuer.rstrip("/") + DISCOVERY_PATH)
        try:
            metadata = msgspec.convert(document, ProviderMetadata)
        except msgspec.ValidationError as error:
            raise self._failed(f"its discovery document is not valid: {error}") from None
        check_metadata(metadata, self.settings.issuer)
        return metadata

    async def _load_keys(self) -> list[Key]:
        keys = import_keys(await self._get((await self.metadata()).jwks_uri))
        if not keys:
            raise self._failed("it has no key that verifies ID tokens")
        return keys

    def _authentication(self, metadata: ProviderMetadata) -> tuple[dict[str, str], dict[str, str]]:
        """Return the fields and the headers that identify this client (RFC 6749, section 2.3.1)."""
        client_id, secret = self.settings.client_id, self._secret()
        if secret is None:
            return {"client_id": client_id}, {}
        methods = metadata.token_endpoint_auth_methods_supported
        if "client_secret_basic" not in methods and "client_secret_post" in methods:
            return {"client_id": client_id, "client_secret": secret}, {}
        credentials = f"{quote_plus(client_id)}:{quote_plus(secret)}"
        return {}, {"authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}

    def _secret(self) -> str | None:
        try:
            return self._read_secret()
        except ValueError as error:
            log.warning("oidc_secret_unreadable", error=str(error))
            raise self._failed("the secret of this server as its client cannot be read here") from None

    def _refusal(self, status: int, answer: Mapping[str, Any]) -> ProviderFailed | SignInExpired:
        """Return the error for an answer of the token endpoint that has no tokens (RFC 6749, section 5.2)."""
        code = answer.get("error")
        log.warning("oidc_code_refused", status=status, error=str(code)[:100])
        match code:
            case "invalid_grant":
                return SignInExpired()
            case "invalid_client" | "unauthorized_client":
                hint = "an operator must compare `oidc_client_id` and `oidc_client_secret` with the client there"
                return self._failed(f"it does not accept this server as its client; {hint}")
            case _:
                return self._failed(f"its token endpoint answered with the status {status}")

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            status, document = await self._client.get(url)
        except RequestFailed as error:
            raise self._failed(f"{_place(url)}: {error}") from error
        if status != 200:
            raise self._failed(f"{_place(url)}: it answered with the status {status}")
        return document

    async def _post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        try:
            return await self._client.post(url, form, headers)
        except RequestFailed as error:
            raise self._failed(f"{_place(url)}: {error}") from error

    def _failed(self, reason: str) -> ProviderFailed:
        error = ProviderFailed(
            f"{self.settings.name} cannot be used now: {reason}. "
            "Try again in some minutes; if that does not help, an operator can run `signoff doctor`."
        )
        error.reason = reason
        return error


def _place(url: str) -> str:
    return urlsplit(url).path or "/"
