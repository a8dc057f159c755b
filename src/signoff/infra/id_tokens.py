"""Verification of ID tokens (OpenID Connect Core 1.0, section 3.1.3.7), by the JOSE library joserfc."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from signoff.core.decode import as_object

if TYPE_CHECKING:  # the library is imported at the first sign-in
    from joserfc.jwk import Key

# Signatures by public-key cryptography. `none` and HMAC are not accepted: whoever can verify those can also forge them.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
KEY_TYPES = frozenset({"RSA", "EC", "OKP"})
MIN_RSA_BITS = 2048
MAX_KEYS = 50
MAX_TOKEN_LENGTH = 64 * 1024
MAX_HEADER_LENGTH = 8 * 1024
LEEWAY_SECONDS = 60


class IdTokenRefused(Exception):
    """An ID token that must not be used; the message is the reason."""


class KeyMissing(IdTokenRefused):
    """An ID token that no known key has signed; the provider may have new keys."""


class ClocksDiffer(IdTokenRefused):
    """An ID token that has expired or is not valid yet, by the clock of this server."""


class ExpectedClaims(msgspec.Struct, frozen=True, kw_only=True):
    """Values that the claims of an ID token must have."""

    issuer: str
    """Value of `iss`."""
    client_id: str
    """Value of `aud`, or one of its values, and of `azp`."""
    nonce: str
    """Value of `nonce`."""
    now: int
    """Present time in seconds since 1970, UTC; compared with `iat`, `nbf` and `exp`, with LEEWAY_SECONDS to spare."""


def import_keys(document: Mapping[str, Any]) -> list[Key]:
    """Return the public keys of a JWK set (RFC 7517) that can verify signatures, out of its first MAX_KEYS keys.

    Keys for encryption, malformed ones, and RSA keys of fewer than MIN_RSA_BITS are left out.
    """
    from joserfc.errors import JoseError, SecurityWarning
    from joserfc.jwk import JWKRegistry

    keys = list[Any]()
    listed = document.get("keys")
    for each in cast("list[Any]", listed)[:MAX_KEYS] if isinstance(listed, list) else ():
        jwk = as_object(each)
        if jwk.get("kty") not in KEY_TYPES or jwk.get("use", "sig") != "sig":
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SecurityWarning)  # of short keys, which are left out
                key: Any = JWKRegistry.import_key(jwk)
            is_short = key.key_type == "RSA" and key.public_key.key_size < MIN_RSA_BITS
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):
            continue
        keys += [] if is_short else [key]
    return keys


def verify_id_token(text: str, keys: Sequence[Key], expected: ExpectedClaims) -> dict[str, Any]:
    """Return the claims of an ID token.

    Raises:
        KeyMissing: No key has the id that the token names, or the signature is not by any of the keys.
        ClocksDiffer: The token has expired, or is not valid yet.
        IdTokenRefused: Anything else is wrong with it.
    """
    claims = _verify_signature(text, keys)
    _check_claims(claims, expected)
    return claims


def _verify_signature(text: str, keys: Sequence[Key]) -> dict[str, Any]:
    from joserfc import jws, jwt
    from joserfc.errors import BadSignatureError, InvalidKeyTypeError, JoseError, SecurityWarning

    # Providers add members of their own to the header; those that `crit` names are refused all the same.
    registry = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
    registry.max_header_length = MAX_HEADER_LENGTH

    if len(text) > MAX_TOKEN_LENGTH:
        raise IdTokenRefused(f"the ID token is longer than {MAX_TOKEN_LENGTH} characters")
    try:
        header = jws.extract_compact(text.encode(), registry=registry).headers()
    except (JoseError, ValueError):
        raise IdTokenRefused("the ID token is malformed") from None
    if header.get("alg") not in ALGORITHMS:
        raise IdTokenRefused(
            f"the ID token has the algorithm {str(header.get('alg'))[:20]!r}; let the provider sign with RS256"
        )
    kid = header.get("kid")
    for key in keys:
        if kid is not None and key.kid not in {kid, None}:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SecurityWarning)  # EdDSA is an old name of an algorithm that is safe
                return jwt.decode(text, key, registry=registry).claims
        except (BadSignatureError, InvalidKeyTypeError):
            continue
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise IdTokenRefused(f"the ID token cannot be verified ({type(error).__name__})") from None
    raise KeyMissing("the ID token is not signed by a key of the provider")


def _check_claims(claims: dict[str, Any], expected: ExpectedClaims) -> None:
    from joserfc.errors import ClaimError, ExpiredTokenError
    from joserfc.jwt import JWTClaimsRegistry

    registry = JWTClaimsRegistry(
        now=expected.now,
        leeway=LEEWAY_SECONDS,
        iss={"essential": True, "value": expected.issuer},
        sub={"essential": True},
        aud={"essential": True, "value": expected.client_id},
        exp={"essential": True},
        iat={"essential": True},
        nonce={"essential": True, "value": expected.nonce},
    )
    try:
        registry.validate(claims)
    except ExpiredTokenError:
        raise ClocksDiffer("the ID token has expired") from None
    except ClaimError as error:
        if error.claim in {"iat", "nbf"} and isinstance(claims.get(error.claim), int | float):
            raise ClocksDiffer("the ID token is not valid yet") from None
        raise IdTokenRefused(f"the claim `{error.claim}` of the ID token is missing or wrong") from None
    if not isinstance(claims["nonce"], str):  # the registry takes a list that has the value
        raise IdTokenRefused("the claim `nonce` of the ID token is missing or wrong")
    is_shared = isinstance(claims["aud"], list) and len(cast("list[Any]", claims["aud"])) > 1
    if claims.get("azp", None if is_shared else expected.client_id) != expected.client_id:
        raise IdTokenRefused("the claim `azp` of the ID token is missing or wrong")
