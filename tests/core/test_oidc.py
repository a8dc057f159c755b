"""Rules of signing in by OpenID Connect."""

from __future__ import annotations

from typing import Any

import pytest

from signoff.core.access import User
from signoff.core.oidc import (
    ProviderMetadata,
    ProviderSettings,
    account_of,
    check_metadata,
    claim_at,
    code_challenge,
    has_all_claims,
    sign_in_kind,
)
from signoff.core.sign_in import checked_next
from signoff.errors import ProviderFailed, SignInRefused

ISSUER = "https://sso.example.com"
SETTINGS = ProviderSettings(issuer=ISSUER, client_id="signoff")
MAPPED = ProviderSettings(
    issuer=ISSUER,
    client_id="signoff",
    role_claim="groups",
    roles={"ops": "admin", "desk": "reviewer", "staff": "user"},
)
ANN = User(id=1, email="ann@example.com", role="user")
CLAIMS: dict[str, Any] = {"sub": "ann-1", "email": "Ann@Example.com", "email_verified": True}


def test_the_challenge_is_that_of_the_standard() -> None:
    """RFC 7636, appendix B."""
    assert (
        code_challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    )


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["staff", "ops", "desk"], "admin"),
        (["desk", 7, None, "staff"], "reviewer"),
        ("staff", "user"),
        ("OPS", None),
        ([], None),
        (None, None),
        ({"ops": True}, None),
        ([["ops"]], None),
        (True, None),
    ],
)
def test_the_value_with_the_most_rights_decides_the_role(groups: Any, role: str | None) -> None:
    assert account_of(CLAIMS | {"groups": groups}, MAPPED).role == role


def test_a_claim_is_found_by_a_path_or_by_a_name_with_dots() -> None:
    claims = {
        "a": {"b": {"c": 1}, "d": None},
        "https://x.example/roles": ["r"],
        "resource": {"my.client": {"roles": 2}},
    }
    assert claim_at(claims, "a.b.c") == 1
    assert claim_at(claims, "https://x.example/roles") == ["r"]
    assert [claim_at(claims, path) for path in ("a.d", "a.b.c.d", "a.x", "x", "a.", "")] == [None] * 6


@pytest.mark.parametrize("subject", [None, 7, "", "x" * 256, "a\0b", "a\nb", ["a"]])
def test_an_account_without_a_usable_id_is_refused(subject: Any) -> None:
    with pytest.raises(SignInRefused, match="`sub`"):
        account_of(CLAIMS | {"sub": subject}, SETTINGS)


@pytest.mark.parametrize("change", [{"email_verified": False}, {"email_verified": 1.5}, {"email": "a\0@example.com"}])
def test_only_verified_addresses_count(change: dict[str, Any]) -> None:
    assert account_of(CLAIMS, SETTINGS).email == "ann@example.com"
    assert account_of(CLAIMS | {"email_verified": "true"}, SETTINGS).email == "ann@example.com"
    assert account_of(CLAIMS | change, SETTINGS).email is None


def test_a_trusted_address_is_refused_if_the_provider_says_that_it_is_not_verified() -> None:
    trusting = ProviderSettings(issuer=ISSUER, client_id="signoff", trust_email=True)
    unmarked = {"sub": "ann-1", "email": "ann@example.com"}
    assert account_of(unmarked, trusting).email == "ann@example.com"
    for mark in (False, "false"):
        assert account_of(unmarked | {"email_verified": mark}, trusting).email is None


def test_the_mark_of_verification_is_about_the_claim_email_alone() -> None:
    by_name = ProviderSettings(issuer=ISSUER, client_id="signoff", email_claim="upn")
    assert account_of(CLAIMS | {"upn": "root@example.com"}, by_name).email is None


@pytest.mark.parametrize(("claims", "expected"), [(CLAIMS, False), (CLAIMS | {"groups": []}, True), ({}, False)])
def test_what_decides_must_be_there(claims: dict[str, Any], expected: bool) -> None:
    assert has_all_claims(claims, MAPPED) is expected
    assert has_all_claims(CLAIMS, SETTINGS)


@pytest.mark.parametrize(
    "path",
    [
        "//x.example",
        "/\\x.example",
        "https://x.example",
        "/dashboard",
        "/dashboardx",
        "/dashboard/\n",
        "/dashboard/é",
        "/api",
    ],
)
def test_a_sign_in_leads_to_pages_of_this_server_alone(path: str) -> None:
    assert checked_next(path) == "/"
    assert checked_next("/dashboard/" + "x" * 3000) == "/"
    assert checked_next(None) == "/"
    assert checked_next("/dashboard/jobs/1?q=a%20b&x=") == "/dashboard/jobs/1?q=a%20b&x="


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": f"{ISSUER}/"},
        {"token_endpoint": "http://sso.example.com/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": f"{ISSUER}/a\r\nset-cookie: x"},
        {"authorization_endpoint": f"{ISSUER}/é"},
        {"end_session_endpoint": "javascript:alert(1)"},
        {"code_challenge_methods_supported": ("plain",)},
    ],
)
def test_a_discovery_document_that_cannot_be_used_is_refused(change: dict[str, Any]) -> None:
    right = {
        "issuer": ISSUER,
        "authorization_endpoint": f"{ISSUER}/a",
        "token_endpoint": f"{ISSUER}/t",
        "jwks_uri": f"{ISSUER}/k",
    }
    check_metadata(ProviderMetadata(**right), ISSUER)
    with pytest.raises(ProviderFailed):
        check_metadata(ProviderMetadata(**(right | change)), ISSUER)


def test_a_command_in_a_message_quotes_what_the_provider_says() -> None:
    account = account_of(CLAIMS | {"sub": "$(reboot)", "email": "a;b@example.com"}, SETTINGS)
    for is_taken, command in ((True, "unbind 'a;b@example.com'"), (False, "bind 'a;b@example.com' '$(reboot)'")):
        with pytest.raises(SignInRefused) as refused:
            sign_in_kind(account, SETTINGS, bound=None, namesake=ANN, is_taken=is_taken)
        assert command in refused.value.message
