"""Verification of ID tokens: signatures, algorithms and keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from signoff.infra.id_tokens import (
    LEEWAY_SECONDS,
    ClocksDiffer,
    ExpectedClaims,
    IdTokenRefused,
    KeyMissing,
    import_keys,
    verify_id_token,
)

NOW = 1_800_000_000
EXPECTED = ExpectedClaims(issuer="https://sso.example.com", client_id="signoff", nonce="n-1", now=NOW)
CLAIMS: dict[str, Any] = {
    "iss": "https://sso.example.com",
    "aud": "signoff",
    "sub": "ann-1",
    "nonce": "n-1",
    "iat": NOW,
    "exp": NOW + 300,
}
RSA = RSAKey.generate_key(2048, {"kid": "a", "use": "sig"})


def signed(claims: dict[str, Any] = CLAIMS, key: Any = RSA, alg: str = "RS256", **header: Any) -> str:
    """Return a token."""
    head = {"alg": alg} | ({"kid": key.kid} if key.kid else {}) | header
    registry = JWSRegistry(algorithms=[alg], strict_check_header=False)
    registry.max_header_length = 10_000
    return jwt.encode(
        {name: value for name, value in head.items() if value is not None}, claims, key, registry=registry
    )


def published(*keys: Any) -> list[Any]:
    """Return the keys as a provider publishes them."""
    return import_keys({"keys": [key.as_dict(private=False) for key in keys]})


def encoded_number(number: int) -> str:
    """Return a number of a key."""
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8)).rstrip(b"=").decode()


def encoded(part: dict[str, Any]) -> str:
    """Return a part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (RSA, "RS256"),
        (RSA, "PS512"),
        (ECKey.generate_key("P-256", {"kid": "e"}), "ES256"),
        (ECKey.generate_key("P-521"), "ES512"),
        (OKPKey.generate_key("Ed25519", {"kid": "o"}), "Ed25519"),
    ],
)
def test_a_token_signed_by_a_key_of_the_provider_is_accepted(key: Any, alg: str) -> None:
    other = RSAKey.generate_key(2048, {"kid": "other"})
    assert verify_id_token(signed(key=key, alg=alg), published(other, key), EXPECTED) == CLAIMS
    assert verify_id_token(signed(key=key, alg=alg, kid=None), published(other, key), EXPECTED) == CLAIMS


def test_a_token_of_an_algorithm_without_a_private_key_is_refused() -> None:
    pem = RSA.as_pem(private=False)
    parts = f"{encoded({'alg': 'HS256', 'kid': 'a'})}.{encoded(CLAIMS)}"
    mac = base64.urlsafe_b64encode(hmac.digest(pem, parts.encode(), hashlib.sha256)).rstrip(b"=").decode()
    shared = OctKey.import_key("a secret of thirty-two characters")
    for text in (
        f"{parts}.{mac}",  # HMAC with the public key, which everybody knows
        f"{encoded({'alg': 'none', 'kid': 'a'})}.{encoded(CLAIMS)}.",
        f"{encoded({'alg': 'None'})}.{encoded(CLAIMS)}.",
        signed(key=shared, alg="HS256"),
    ):
        with pytest.raises(IdTokenRefused, match="algorithm"):
            verify_id_token(text, published(RSA), EXPECTED)


def test_a_key_in_the_token_itself_is_not_trusted() -> None:
    own = RSAKey.generate_key(2048, {"kid": "mine"})
    for header in ({"jwk": own.as_dict(private=False)}, {"jku": "https://evil.example/jwks"}, {"kid": "a"}):
        with pytest.raises(KeyMissing):
            verify_id_token(signed(key=own, **header), published(RSA), EXPECTED)


def test_a_changed_token_is_refused() -> None:
    head, _, signature = signed().split(".")
    for text in (
        f"{head}.{encoded(CLAIMS | {'sub': 'root'})}.{signature}",
        f"{head}.{encoded(CLAIMS)}.",
        f"{head}.{encoded(CLAIMS)}.{signature[:-4]}AAAA",
    ):
        with pytest.raises(KeyMissing):
            verify_id_token(text, published(RSA), EXPECTED)
    for text in ("", "a.b", "a.b.c", "é.é.é", f"{head}..", "." * 10, "x" * 100_000):
        with pytest.raises(IdTokenRefused):
            verify_id_token(text, published(RSA), EXPECTED)


def test_a_header_may_have_members_of_the_provider() -> None:
    assert verify_id_token(signed(x5t="abc", **{"pi.atm": "1", "own": "x" * 2000}), published(RSA), EXPECTED) == CLAIMS


def test_a_critical_extension_that_is_not_known_is_refused() -> None:
    text = f"{encoded({'alg': 'RS256', 'kid': 'a', 'crit': ['exp2'], 'exp2': 1})}.{encoded(CLAIMS)}.AAAA"
    with pytest.raises(IdTokenRefused):
        verify_id_token(text, published(RSA), EXPECTED)


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "https://sso.example.com/"},
        {"iss": ["https://sso.example.com"]},
        {"aud": "Signoff"},
        {"aud": []},
        {"aud": {"signoff": 1}},
        {"aud": ["signoff", "other"]},
        {"aud": ["signoff", "other"], "azp": "other"},
        {"azp": "other"},
        {"nonce": ["n-1"]},
        {"nonce": "N-1"},
        {"sub": 7},
        {"exp": "soon"},
        {"exp": True},
        {"iat": None},
    ],
)
def test_a_wrong_claim_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(IdTokenRefused):
        verify_id_token(signed(CLAIMS | change), published(RSA), EXPECTED)


@pytest.mark.parametrize("missing", ["iss", "aud", "sub", "nonce", "iat", "exp"])
def test_a_missing_claim_is_refused(missing: str) -> None:
    claims = {name: value for name, value in CLAIMS.items() if name != missing}
    with pytest.raises(IdTokenRefused, match=f"`{missing}`"):
        verify_id_token(signed(claims), published(RSA), EXPECTED)


def test_several_audiences_need_the_authorized_party() -> None:
    claims = CLAIMS | {"aud": ["other", "signoff"], "azp": "signoff"}
    assert verify_id_token(signed(claims), published(RSA), EXPECTED) == claims
    assert verify_id_token(signed(CLAIMS | {"aud": ["signoff"]}), published(RSA), EXPECTED)


def test_clocks_may_differ_by_a_minute() -> None:
    for change in ({"iat": NOW + LEEWAY_SECONDS}, {"exp": NOW - LEEWAY_SECONDS + 1}, {"nbf": NOW + LEEWAY_SECONDS}):
        assert verify_id_token(signed(CLAIMS | change), published(RSA), EXPECTED)
    for change in ({"iat": NOW + LEEWAY_SECONDS + 1}, {"exp": NOW - LEEWAY_SECONDS}, {"nbf": NOW + LEEWAY_SECONDS + 1}):
        with pytest.raises(ClocksDiffer):
            verify_id_token(signed(CLAIMS | change), published(RSA), EXPECTED)


def test_keys_that_cannot_verify_are_left_out() -> None:
    right = RSA.as_dict(private=False)
    short = {"kty": "RSA", "n": encoded_number(2**1023 + 1), "e": "AQAB"}
    others: list[Any] = [
        *({}, 7, None, "key", short, right | {"use": "enc"}, right | {"n": 7}, {"kty": "EC", "crv": "P-256"}),
        *({"kty": "oct", "k": "AAAA"}, {"kty": "AKP", "pub": "AAAA"}, {"kty": "OKP", "crv": "Ed25519", "x": "AA"}),
    ]
    assert [key.kid for key in import_keys({"keys": [*others, right]})] == ["a"]
    for document in ({}, {"keys": {}}, {"keys": "a"}, {"keys": others}):
        assert import_keys(document) == []
    assert len(import_keys({"keys": [right] * 1000})) == 50
