"""Sign-in by OpenID Connect: the whole flow against a small provider, and everything that must not sign in."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
import pytest
from aiohttp import web
from joserfc.jwk import RSAKey

from signoff.commands.doctor import run_checks
from signoff.server.bootstrap import check_provider
from signoff.setting_sources import BadSettings
from signoff.settings import Settings
from signoff.work.admin.oidc import bind_account
from signoff.work.admin.people import create_user, sign_in_link, user_with_email
from support.identity_provider import SmallProvider, Visitor, account, settings_of, small_provider
from support.live_server import Live, live

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider() -> AsyncIterator[SmallProvider]:
    """Yield a running provider."""
    async with small_provider() as running:
        yield running


@pytest.fixture
async def server(provider: SmallProvider, tmp_path: Path) -> AsyncIterator[Live]:
    """Yield a server where people sign in by the provider."""
    async with live(tmp_path, **settings_of(provider)) as running:
        await create_user(running.services, "root@example.com", "admin")
        yield running


async def entries(server: Live) -> list[tuple[str, str, str]]:
    """Return action, subject and actor of the audit log, the newest last."""
    _, log = await server.ask("GET", "/api/audit?limit=1000", await server.token("admin", "root@example.com"))
    return [(each["action"], each["subject"], each["actor"]) for each in reversed(log["data"])]


def alert(page: str) -> str:
    """Return the error on a page, without markup."""
    match = re.search(r'role="alert">(.*?)</p>', page)
    assert match is not None, page
    return match[1].replace("&#39;", "'")


# The flow


async def test_the_first_sign_in_creates_the_user_with_the_role_of_the_claim(
    server: Live, provider: SmallProvider
) -> None:
    visitor = Visitor(server)
    status, _ = await visitor.sign_in(provider, account("ann-1", "Ann@Example.com", "desk", "staff"))
    assert (status, visitor.location) == (303, "/")
    assert await visitor.me() == ("ann@example.com", "reviewer")
    assert [each for each in await entries(server) if each[1] == "user:ann@example.com"] == [
        ("user_created", "user:ann@example.com", "oidc"),
    ]


async def test_the_request_to_the_provider_has_pkce_state_and_nonce(server: Live, provider: SmallProvider) -> None:
    visitor = Visitor(server)
    address = await visitor.begin()
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    assert address.startswith(f"{provider.issuer}/authorize?tenant=a&")
    assert query["redirect_uri"] == f"{server.url}/signin/oidc/callback"
    assert query["scope"] == "openid email profile"
    assert query["code_challenge_method"] == "S256"
    assert len({query["state"], query["nonce"], query["code_challenge"]}) == 3
    assert all(len(query[name]) >= 32 for name in ("state", "nonce", "code_challenge"))
    # the browser cannot read what it must not know yet
    assert query["nonce"] not in visitor.cookies["signoff_oidc"]


async def test_the_cookie_of_an_attempt_is_bound_to_this_host(server: Live) -> None:
    plain, secure = Visitor(server), Visitor(server, **{"x-forwarded-proto": "https"})
    for visitor, name in ((plain, "signoff_oidc"), (secure, "__Host-signoff_oidc")):
        await visitor.begin()
        [cookie] = visitor.set_cookies
        assert cookie.startswith(f"{name}=")
        parts = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "path=/", "samesite=lax", "max-age=600"} <= parts
        assert ("secure" in parts) == name.startswith("__Host-")
        assert not any(part.startswith("domain") for part in parts)


async def test_a_sign_in_behind_tls_works_with_its_own_cookies(server: Live, provider: SmallProvider) -> None:
    visitor = Visitor(server, **{"x-forwarded-proto": "https"})
    address = await visitor.begin()
    assert parse_qs(urlsplit(address).query)["redirect_uri"][0].startswith("https://")
    status, _ = await visitor.come_back(provider.grant(address, account("ann-1", "ann@example.com", "staff")))
    assert status == 303
    assert visitor.cookies.keys() == {"__Host-signoff_session", "signoff_id_token"}


async def test_the_sign_in_leads_to_the_page_that_was_asked_for(server: Live, provider: SmallProvider) -> None:
    visitor = Visitor(server, accept="text/html")
    await visitor.get("/dashboard/jobs?status=human&q=a%20b")
    assert visitor.location == "/dashboard/sign-in?next=%2Fdashboard%2Fjobs%3Fstatus%3Dhuman%26q%3Da%2520b"
    _, page = await visitor.get(visitor.location)
    link = re.search(r'href="/signin/oidc(\?next=[^"]+)"', page)
    assert link is not None
    await visitor.sign_in(provider, account("ann-1", "ann@example.com", "staff"), link[1].replace("&amp;", "&"))
    assert visitor.location == "/dashboard/jobs?status=human&q=a%20b"


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "/dashboard/\\x",
        "/dashboard/%0d%0ax\r\ny",
        "/x",
        "",
    ],
)
async def test_a_sign_in_leads_to_no_other_server(path: str, server: Live, provider: SmallProvider) -> None:
    visitor = Visitor(server)
    await visitor.sign_in(provider, account("ann-1", "ann@example.com", "staff"), f"?{urlencode({'next': path})}")
    assert visitor.location == "/"
    _, page = await visitor.get(f"/dashboard/sign-in?{urlencode({'next': path})}")
    assert "evil" not in page


async def test_the_role_follows_the_claim_at_each_sign_in_and_a_smaller_one_ends_sessions(
    server: Live, provider: SmallProvider
) -> None:
    first, second, third = Visitor(server), Visitor(server), Visitor(server)
    await first.sign_in(provider, account("ann-1", "ann@example.com", "staff"))
    await second.sign_in(provider, account("ann-1", "ann@example.com", "ops"))
    assert await second.me() == ("ann@example.com", "admin")
    assert (await first.get("/jobs"))[0] == 200
    await third.sign_in(provider, account("ann-1", "ann@example.com", "desk"))
    assert await third.me() == ("ann@example.com", "reviewer")
    assert [(await visitor.get("/jobs"))[0] for visitor in (first, second, third)] == [401, 401, 200]
    changes = [each for each in await entries(server) if each[:2] == ("user_changed", "user:ann@example.com")]
    assert changes == [("user_changed", "user:ann@example.com", "oidc")] * 2


async def test_a_claim_that_is_a_text_counts_too(provider: SmallProvider, tmp_path: Path) -> None:
    more: dict[str, Any] = {"oidc_role_claim": "https://example.com/role"}
    async with live(tmp_path, **settings_of(provider, **more)) as server:
        visitor = Visitor(server)
        await visitor.sign_in(provider, account() | {"https://example.com/role": "ops"})
        assert await visitor.me() == ("ann@example.com", "admin")


async def test_claims_that_the_id_token_lacks_come_from_the_user_information(
    server: Live, provider: SmallProvider
) -> None:
    provider.information = account("ann-1", "ann@example.com", "desk")
    visitor = Visitor(server)
    await visitor.sign_in(provider, {"sub": "ann-1"})
    assert await visitor.me() == ("ann@example.com", "reviewer")
    # an address and the mark that it is verified are not mixed
    provider.information = account("new-1", "other@example.com", "desk")
    await visitor.sign_in(provider, {"sub": "new-1", "email": "root@example.com"})
    assert await visitor.me() == ("other@example.com", "reviewer")
    # and those of somebody else are refused
    provider.information = account("eve-1", "root@example.com", "ops")
    status, page = await Visitor(server).sign_in(provider, {"sub": "ann-1"})
    assert status == 502
    assert "another account" in alert(page)


async def test_the_secret_is_sent_as_the_provider_takes_it(provider: SmallProvider, tmp_path: Path) -> None:
    provider.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    path = tmp_path / "secret"
    path.write_text("s3cret:&%\n")
    more = {"oidc_client_secret": None, "oidc_client_secret_file": path}
    async with live(tmp_path, **settings_of(provider, **more)) as server:
        visitor = Visitor(server)
        await visitor.sign_in(provider, account("ann-1", "ann@example.com", "staff"))
        assert await visitor.me() == ("ann@example.com", "user")


# Attempts and answers


async def test_an_answer_signs_in_once_and_only_in_the_browser_that_began(
    server: Live, provider: SmallProvider
) -> None:
    ann, eve = Visitor(server), Visitor(server)
    claims = account("ann-1", "ann@example.com", "staff")
    address = await ann.begin()
    await eve.begin()
    answer = provider.grant(address, claims)
    # somebody else's browser, one without a cookie, and a wrong state
    for visitor, wrong in ((eve, answer), (Visitor(server), answer), (ann, answer | {"state": "guess"})):
        status, page = await visitor.come_back(wrong)
        assert status == 400
        assert "begin again" in alert(page)
        assert await visitor.me() is None
    # a wrong answer has ended the attempt, as it cannot be told from an attack
    assert (await ann.come_back(answer))[0] == 400
    cookies = dict(ann.cookies)
    answer = provider.grant(await ann.begin(), claims)
    cookies = dict(ann.cookies)
    assert (await ann.come_back(answer))[0] == 303
    # the same answer again, also with the cookie of before
    assert (await ann.come_back(answer))[0] == 400
    again = Visitor(server)
    again.cookies = cookies
    assert (await again.come_back(answer))[0] == 400


async def test_an_attempt_ends_after_its_time(
    server: Live, provider: SmallProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = Visitor(server)
    answer = provider.grant(await visitor.begin(), account("ann-1", "ann@example.com", "staff"))
    monkeypatch.setattr("signoff.work.admin.oidc.ATTEMPT_SECONDS", 0)
    status, page = await visitor.come_back(answer)
    assert status == 400
    assert "too long ago" in alert(page)


async def test_a_sealed_secret_of_another_kind_is_no_attempt(server: Live, provider: SmallProvider) -> None:
    visitor = Visitor(server)
    answer = provider.grant(await visitor.begin(), account("ann-1", "ann@example.com", "staff"))
    sealed = server.services.adapters.vault.seal(json.dumps({"state": answer["state"]})).decode().rstrip("=")
    for cookie in (sealed, "x", "é", "=" * 9):
        visitor.cookies = {"signoff_oidc": cookie}
        assert (await visitor.come_back(answer))[0] == 400


async def test_an_answer_of_another_provider_is_refused(server: Live, provider: SmallProvider) -> None:
    """The mix-up attack (RFC 9207)."""
    claims = account("ann-1", "ann@example.com", "staff")
    visitor = Visitor(server)
    answer = provider.grant(await visitor.begin(), claims) | {"iss": "https://evil.example"}
    status, page = await visitor.come_back(answer)
    assert status == 403
    assert "another provider" in alert(page)
    assert "/token" not in provider.requests
    answer = provider.grant(await visitor.begin(), claims) | {"iss": provider.issuer}
    assert (await visitor.come_back(answer))[0] == 303


async def test_a_provider_that_names_itself_must_do_so(provider: SmallProvider, tmp_path: Path) -> None:
    provider.metadata = {"authorization_response_iss_parameter_supported": True}
    async with live(tmp_path, **settings_of(provider)) as server:
        visitor = Visitor(server)
        answer = provider.grant(await visitor.begin(), account("ann-1", "ann@example.com", "staff"))
        assert (await visitor.come_back(answer))[0] == 403


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("access_denied", "Acme SSO did not let you in, or you cancelled."),
        ("temporarily_unavailable", "Acme SSO is overloaded or being repaired."),
        ("odd_one", "with the error `odd_one`"),
        ("<b>odd</b>", "ended the sign-in with the error, which is not known here"),
    ],
)
async def test_an_error_of_the_provider_is_told_in_plain_words(
    code: str, text: str, server: Live, provider: SmallProvider
) -> None:
    visitor = Visitor(server)
    state = provider.grant(await visitor.begin(), {})["state"]
    answer = {"error": code, "error_description": "call-me", "state": state}
    status, page = await visitor.come_back(answer)
    assert status == 403
    assert text in alert(page)
    assert "call-me" not in page
    assert "<b>" not in alert(page)
    # a link of somebody else shows no such text
    assert "begin again" in alert((await visitor.come_back(answer))[1])


async def test_too_many_sign_ins_at_once_are_told_when_to_try_again(server: Live, provider: SmallProvider) -> None:
    identity = server.services.runtime.identity_provider
    assert identity is not None
    visitor = Visitor(server)
    answer = provider.grant(await visitor.begin(), account("ann-1", "ann@example.com", "staff"))
    identity._exchanges = 16
    status, page = await visitor.come_back(answer)
    assert (status, "try again in some seconds" in alert(page)) == (429, True)
    assert "/token" not in provider.requests
    identity._exchanges = 0
    assert (await visitor.come_back(answer))[0] == 303


async def test_a_page_of_another_site_cannot_load_the_routes_as_a_part(server: Live, provider: SmallProvider) -> None:
    visitor = Visitor(server)
    part = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "image"}
    assert (await visitor.get("/signin/oidc", headers=part))[0] == 403
    answer = provider.grant(await visitor.begin(), account("ann-1", "ann@example.com", "staff"))
    assert (await visitor.come_back(answer, headers=part))[0] == 403
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document", "sec-fetch-mode": "navigate"}
    assert (await visitor.come_back(answer, headers=followed))[0] == 303


async def test_head_requests_and_other_methods_do_nothing(server: Live, provider: SmallProvider) -> None:
    visitor = Visitor(server)
    answer = provider.grant(await visitor.begin(), account("ann-1", "ann@example.com", "staff"))
    for method in ("HEAD", "POST", "PUT"):
        assert (await visitor.come_back(answer, method=method))[0] == 405
    assert (await visitor.come_back(answer))[0] == 303


# ID tokens


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"iss": "https://evil.example"}, "`iss`"),
        ({"aud": "another-client"}, "`aud`"),
        ({"aud": ["signoff", "other"]}, "`azp`"),
        ({"azp": "another-client"}, "`azp`"),
        ({"nonce": "replayed"}, "`nonce`"),
        ({"nonce": None}, "`nonce`"),
        ({"sub": None}, "`sub`"),
        ({"exp": None}, "`exp`"),
        ({"exp": int(time.time()) - 3600}, "the clocks of Acme SSO and of this server differ"),
        ({"iat": int(time.time()) + 3600}, "the clocks of Acme SSO and of this server differ"),
    ],
)
async def test_an_id_token_with_a_wrong_claim_signs_nobody_in(
    changes: dict[str, Any], text: str, server: Live, provider: SmallProvider
) -> None:
    provider.changes = changes
    visitor = Visitor(server)
    status, page = await visitor.sign_in(provider, account("ann-1", "ann@example.com", "ops"))
    assert status == 502
    assert text in alert(page)
    assert await visitor.me() is None


async def test_an_id_token_with_a_wrong_signature_signs_nobody_in(server: Live, provider: SmallProvider) -> None:
    await Visitor(server).sign_in(provider, account("ann-1", "ann@example.com", "staff"))
    forged = RSAKey.generate_key(2048, {"kid": "first"})
    published, provider.keys = provider.keys, [forged]
    provider.answers["/jwks"] = web.json_response({"keys": [published[0].as_dict(private=False)]})
    visitor = Visitor(server)
    status, page = await visitor.sign_in(provider, account("ann-1", "ann@example.com", "ops"))
    assert status == 502
    assert "not signed by a key of the provider" in alert(page)
    assert await visitor.me() is None


async def test_new_keys_are_loaded_for_an_unknown_key_but_not_for_each(
    server: Live, provider: SmallProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    identity = server.services.runtime.identity_provider
    assert identity is not None
    for loaded in (identity._keys, identity._metadata):
        loaded._now = lambda: now[0]
    await Visitor(server).sign_in(provider, account("ann-1", "ann@example.com", "staff"))
    provider.keys.append(RSAKey.generate_key(2048, {"kid": "second"}))
    # an attacker's unknown keys do not make this server ask again and again
    for _ in range(3):
        assert (await Visitor(server).sign_in(provider, account("ann-1", "ann@example.com", "staff")))[0] == 502
    assert provider.requests.count("/jwks") == 1
    now[0] += 61
    visitor = Visitor(server)
    assert (await visitor.sign_in(provider, account("ann-1", "ann@example.com", "staff")))[0] == 303
    assert provider.requests.count("/jwks") == 2
    assert provider.requests.count("/.well-known/openid-configuration") == 1


# Accounts and users


@pytest.mark.parametrize(
    "claims",
    [
        {"email_verified": False},
        {"email_verified": None},
        {"email_verified": "false"},
        {"email": None},
        {"email": ["ann@example.com"]},
        {"email": "no address"},
        {"email": "\u212aate@example.com"},  # the Kelvin sign, which is a k in lower case
    ],
)
async def test_an_address_that_is_not_verified_is_nobody(
    claims: dict[str, Any], server: Live, provider: SmallProvider
) -> None:
    visitor = Visitor(server)
    status, page = await visitor.sign_in(provider, account("ann-1", "ann@example.com", "ops") | claims)
    assert status == 403
    assert "no e-mail address that it has verified" in alert(page)
    assert await visitor.me() is None


async def test_a_bound_account_needs_no_verified_address_and_keeps_its_user_under_a_new_one(
    server: Live, provider: SmallProvider
) -> None:
    await Visitor(server).sign_in(provider, account("ann-1", "ann@example.com", "staff"))
    for claims in ({"email_verified": False}, {"email": "ann.new@example.com"}, {"email": "root@example.com"}):
        visitor = Visitor(server)
        await visitor.sign_in(provider, account("ann-1", "ann@example.com", "staff") | claims)
        assert await visitor.me() == ("ann@example.com", "user")


async def test_an_address_that_is_used_again_at_the_provider_gets_no_other_user(
    provider: SmallProvider, tmp_path: Path
) -> None:
    async with live(tmp_path, **settings_of(provider, oidc_link_users=True)) as server:
        await Visitor(server).sign_in(provider, account("ann-1", "ann@example.com", "ops"))
        visitor = Visitor(server)
        status, page = await visitor.sign_in(provider, account("ann-2", "ann@example.com", "ops"))
        assert status == 403
        assert "belongs to another account at Acme SSO" in alert(page)
        assert "signoff user unbind ann@example.com" in alert(page)
        assert await visitor.me() is None


async def test_a_local_user_with_the_same_address_is_not_taken_over(server: Live, provider: SmallProvider) -> None:
    visitor = Visitor(server)
    status, page = await visitor.sign_in(provider, account("eve-1", "root@example.com", "staff"))
    assert status == 403
    assert "signoff user bind root@example.com eve-1" in alert(page)
    assert await visitor.me() is None
    assert (await user_with_email(server.services, "root@example.com")).role == "admin"


async def test_a_local_user_is_linked_if_the_settings_say_so(provider: SmallProvider, tmp_path: Path) -> None:
    more = {"oidc_link_users": True, "oidc_create_users": False}
    async with live(tmp_path, **settings_of(provider, **more)) as server:
        await create_user(server.services, "root@example.com", "admin")
        await create_user(server.services, "ann@example.com", "user", "correct horse")
        visitor = Visitor(server)
        await visitor.sign_in(provider, account("ann-1", "ann@example.com", "desk"))
        assert await visitor.me() == ("ann@example.com", "reviewer")
        # an address that is not verified links nobody, and nobody is created
        unverified = account("bob-1", "root@example.com", "ops", email_verified=False)
        assert (await Visitor(server).sign_in(provider, unverified))[0] == 403
        status, page = await Visitor(server).sign_in(provider, account("new-1", "new@example.com", "ops"))
        assert (status, "Ask an admin to create one" in alert(page)) == (403, True)
        # the last admin stays one, and does not get in with a smaller role
        status, page = await Visitor(server).sign_in(provider, account("root-1", "root@example.com", "staff"))
        assert (status, "last active admin" in alert(page)) == (403, True)


async def test_an_operator_binds_and_unbinds_an_account(server: Live, provider: SmallProvider) -> None:
    user = await create_user(server.services, "ann@example.com", "user")
    claims = account("ann-1", "other@example.org", "staff", email_verified=False)
    await bind_account(server.services, user.id, "ann-1")
    visitor = Visitor(server)
    await visitor.sign_in(provider, claims)
    assert await visitor.me() == ("ann@example.com", "user")
    assert await server.services.store.people.unbind_accounts(user.id) == 1
    assert (await visitor.get("/jobs"))[0] in {200, 401}  # a copy of the caller may be half a second old
    assert (await Visitor(server).sign_in(provider, claims))[0] == 403


async def test_a_disabled_user_stays_out(server: Live, provider: SmallProvider) -> None:
    claims = account("ann-1", "ann@example.com", "ops")
    await Visitor(server).sign_in(provider, account("ann-1", "ann@example.com", "staff"))
    user = await user_with_email(server.services, "ann@example.com")
    await server.services.store.people.change_user(user.id, active=False)
    visitor = Visitor(server)
    status, page = await visitor.sign_in(provider, claims)
    assert (status, alert(page)) == (403, "Your user is disabled here. Ask an admin to enable it.")
    assert await visitor.me() is None
    assert (await user_with_email(server.services, "ann@example.com")).role == "user"


async def test_an_account_without_a_role_is_refused_and_loses_its_sessions(
    server: Live, provider: SmallProvider
) -> None:
    status, page = await Visitor(server).sign_in(provider, account("new-1", "new@example.com", "guests"))
    assert (status, "has no role here" in alert(page)) == (403, True)
    first = Visitor(server)
    await first.sign_in(provider, account("ann-1", "ann@example.com", "ops"))
    assert (await Visitor(server).sign_in(provider, account("ann-1", "ann@example.com")))[0] == 403
    _, sessions = await server.ask("GET", "/api/sessions", await server.token("admin", "root@example.com"))
    assert sessions["data"] == []


async def test_an_account_without_a_role_gets_the_default_one(provider: SmallProvider, tmp_path: Path) -> None:
    async with live(tmp_path, **settings_of(provider, oidc_default_role="user")) as server:
        visitor = Visitor(server)
        await visitor.sign_in(provider, account("ann-1", "ann@example.com", "guests"))
        assert await visitor.me() == ("ann@example.com", "user")


async def test_without_a_role_claim_admins_here_decide(provider: SmallProvider, tmp_path: Path) -> None:
    more: dict[str, Any] = {"oidc_role_claim": None, "oidc_roles": {}, "oidc_default_role": "user"}
    async with live(tmp_path, **settings_of(provider, **more)) as server:
        await Visitor(server).sign_in(provider, account())
        await create_user(server.services, "ann@example.com", "admin")
        visitor = Visitor(server)
        await visitor.sign_in(provider, account())
        assert await visitor.me() == ("ann@example.com", "admin")


async def test_addresses_are_trusted_only_if_the_settings_say_so(provider: SmallProvider, tmp_path: Path) -> None:
    more = {"oidc_trust_email": True, "oidc_email_claim": "preferred_username"}
    async with live(tmp_path, **settings_of(provider, **more)) as server:
        visitor = Visitor(server)
        claims = {"sub": "ann-1", "preferred_username": "ann@example.com", "realm": {"groups": "staff"}}
        await visitor.sign_in(provider, claims)
        assert await visitor.me() == ("ann@example.com", "user")


async def test_many_first_sign_ins_at_once_make_one_user(server: Live, provider: SmallProvider) -> None:
    visitors = [Visitor(server) for _ in range(8)]
    claims = account("ann-1", "ann@example.com", "staff")
    results = await asyncio.gather(*(visitor.sign_in(provider, claims) for visitor in visitors))
    assert {status for status, _ in results} == {303}
    users = [user for user in await server.services.store.people.users() if user.email == "ann@example.com"]
    assert len(users) == 1
    # and the provider was asked for its documents once
    assert provider.requests.count("/.well-known/openid-configuration") == 1
    assert provider.requests.count("/jwks") == 1


# Faults of the provider


HTML = web.Response(text="<html>sign in to the wifi</html>", content_type="text/html")
DISCOVERY = "/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("path", "answer", "text"),
    [
        (DISCOVERY, HTML, "is not a JSON object"),
        (DISCOVERY, web.json_response([]), "is not a JSON object"),
        (DISCOVERY, web.json_response({}), "discovery document is not valid"),
        (DISCOVERY, web.json_response({}, status=404), "the status 404"),
        (DISCOVERY, web.Response(status=302, headers={"location": "https://evil.example"}), "redirect"),
        (DISCOVERY, web.Response(body=b" " * (1024 * 1024 + 1)), "larger than"),
        (DISCOVERY, web.Response(body=b"[" * 200_000), "is not a JSON object"),
        ("/jwks", web.json_response({"keys": []}), "no key that verifies"),
        (
            "/jwks",
            web.json_response({"keys": [{"kty": "oct", "k": "AAAA"}, 7, {"kty": "RSA"}]}),
            "no key that verifies",
        ),
        ("/token", HTML, "is not a JSON object"),
        ("/token", web.json_response({"access_token": "a"}), "gave no ID token"),
        ("/token", web.json_response({"error": "server_error"}, status=500), "the status 500"),
        ("/token", web.json_response({"error": "invalid_client"}, status=401), "`oidc_client_secret`"),
        ("/token", web.json_response({"id_token": "a.b.c"}), "malformed"),
        ("/token", web.json_response({"id_token": "x" * 70_000}), "longer than"),
    ],
)
async def test_a_broken_answer_of_the_provider_is_told_with_a_remedy(
    path: str, answer: web.Response, text: str, server: Live, provider: SmallProvider
) -> None:
    provider.answers[path] = answer
    visitor = Visitor(server)
    status, page = await visitor.get("/signin/oidc")
    if status == 303:
        answers = provider.grant(visitor.location, account("ann-1", "ann@example.com", "staff"))
        status, page = await visitor.come_back(answers)
    assert status == 502
    assert text in alert(page)
    assert "signoff doctor" in alert(page)
    assert 'action="/api/session"' in page  # and the password still works


async def test_a_provider_that_is_down_is_told_and_asked_again_later(server: Live, provider: SmallProvider) -> None:
    identity = server.services.runtime.identity_provider
    assert identity is not None
    right = identity.settings
    now = [1000.0]
    identity._metadata._now = lambda: now[0]
    identity.settings = msgspec.structs.replace(right, issuer="http://127.0.0.1:9")
    status, page = await Visitor(server).get("/signin/oidc")
    assert status == 502
    assert "Acme SSO cannot be used now" in alert(page)
    assert "connection refused" in alert(page)
    identity.settings = right
    assert (await Visitor(server).get("/signin/oidc"))[0] == 502
    assert provider.requests == []
    now[0] += 5
    assert (await Visitor(server).get("/signin/oidc"))[0] == 303


async def test_a_provider_that_does_not_answer_is_given_up(server: Live, provider: SmallProvider) -> None:
    identity = server.services.runtime.identity_provider
    assert identity is not None
    identity._client._total_seconds = 0.05
    provider.is_hanging = True
    status, page = await Visitor(server).get("/signin/oidc")
    assert status == 502
    assert "did not answer within" in alert(page)


async def test_a_document_of_another_issuer_is_refused(provider: SmallProvider, tmp_path: Path) -> None:
    provider.metadata = {"issuer": f"{provider.issuer}/tenant"}
    async with live(tmp_path, **settings_of(provider)) as server:
        status, page = await Visitor(server).get("/signin/oidc")
        assert status == 502
        assert "Set `oidc_issuer`" in alert(page)


# Signing out, and passwords


async def test_signing_out_ends_the_session_here_and_offers_the_sign_out_there(
    server: Live, provider: SmallProvider
) -> None:
    visitor = Visitor(server)
    await visitor.sign_in(provider, account("ann-1", "ann@example.com", "staff"))
    assert (await visitor.get("/dashboard/sign-out", "POST"))[0] == 303
    assert visitor.location == "/dashboard/sign-in?signed_out=1"
    _, page = await visitor.get(visitor.location)
    assert await visitor.me() is None
    assert 'href="/signin/oidc/sign-out"' in page
    # a page of another site cannot do it
    assert (await visitor.get("/signin/oidc/sign-out", headers={"sec-fetch-site": "cross-site"}))[0] == 403
    id_token = visitor.cookies["signoff_id_token"]
    assert (await visitor.get("/signin/oidc/sign-out"))[0] == 303
    address = urlsplit(visitor.location)
    assert visitor.location.startswith(f"{provider.issuer}/logout?")
    assert parse_qs(address.query) == {
        "client_id": ["signoff"],
        "post_logout_redirect_uri": [f"{server.url}/dashboard/sign-in"],
        "id_token_hint": [id_token],
    }
    assert visitor.cookies == {}


async def test_a_provider_without_a_sign_out_is_not_offered(provider: SmallProvider, tmp_path: Path) -> None:
    provider.metadata = {"end_session_endpoint": None}
    async with live(tmp_path, **settings_of(provider)) as server:
        visitor = Visitor(server)
        await visitor.sign_in(provider, account("ann-1", "ann@example.com", "staff"))
        await visitor.get("/dashboard/sign-out", "POST")
        assert "sign-out" not in (await visitor.get(visitor.location))[1]
        assert (await visitor.get("/signin/oidc/sign-out"))[0] == 303
        assert visitor.location == "/dashboard/sign-in"


async def test_without_passwords_only_the_provider_and_links_sign_in(provider: SmallProvider, tmp_path: Path) -> None:
    async with live(tmp_path, **settings_of(provider, password_sign_in=False)) as server:
        user = await create_user(server.services, "root@example.com", "admin", "correct horse")
        body = {"email": "root@example.com", "password": "correct horse"}
        status, answer = await server.ask("POST", "/api/session", json=body)
        assert (status, answer["code"]) == (403, "password_sign_in_off")
        visitor = Visitor(server)
        assert (await visitor.get("/api/session", "POST", data=body))[0] == 303
        _, page = await visitor.get(visitor.location)
        assert alert(page) == "Passwords are turned off here. Sign in another way."
        assert 'action="/api/session"' not in page
        assert "Sign in with Acme SSO" in page
        # nobody is locked out
        assert (await visitor.get(await sign_in_link(server.services, user)))[0] == 303
        assert await visitor.me() == ("root@example.com", "admin")


async def test_without_a_provider_its_routes_say_so(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for path in ("/signin/oidc", "/signin/oidc/callback?code=a&state=b", "/signin/oidc/sign-out"):
            status, page = await Visitor(server).get(path)
            assert (status, "`oidc_issuer`" in alert(page)) == (404, True)
        assert "/signin/oidc" not in (await Visitor(server).get("/"))[1]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"oidc_client_id": None}, "requires `oidc_client_id`"),
        ({"oidc_issuer": None}, "requires `oidc_issuer`"),
        ({"oidc_scopes": ["email"]}, '"openid"'),
        ({"oidc_email_claim": "upn"}, "requires `oidc_trust_email`"),
        ({"oidc_roles": {}}, "require each other"),
        ({"oidc_client_secret_file": Path("/nowhere/secret")}, "exclude each other"),
    ],
)
async def test_settings_that_do_not_fit_are_told(more: dict[str, Any], text: str) -> None:
    values = {
        "oidc_issuer": "https://sso.example.com",
        "oidc_client_id": "signoff",
        "oidc_client_secret": "secret",
        "oidc_role_claim": "groups",
        "oidc_roles": {"ops": "admin"},
    }
    with pytest.raises(BadSettings, match=text):
        await check_provider(Settings(**(values | more)))


async def test_a_missing_file_of_the_secret_stops_sign_ins_and_no_command(
    provider: SmallProvider, tmp_path: Path
) -> None:
    path = tmp_path / "secret"
    more = {"oidc_client_secret": None, "oidc_client_secret_file": path}
    async with live(tmp_path, **settings_of(provider, **more)) as server:
        for content in (None, b"", b"\xff"):
            if content is not None:
                path.write_bytes(content)
            status, page = await Visitor(server).sign_in(provider, account("ann-1", "ann@example.com", "staff"))
            assert (status, "cannot be read here" in alert(page)) == (502, True)
            assert str(path) not in page
            with pytest.raises(BadSettings, match="`oidc_client_secret_file`"):
                await check_provider(Settings(**settings_of(provider, **more)))
        path.write_text("s3cret:&%")  # and it is read again
        assert (await Visitor(server).sign_in(provider, account("ann-1", "ann@example.com", "staff")))[0] == 303


async def test_the_doctor_looks_at_the_provider(provider: SmallProvider, tmp_path: Path) -> None:
    more: dict[str, Any] = {"oidc_trust_email": True, "oidc_link_users": True}
    results = {
        (check.detail, check.is_ok, check.is_warning)
        for check in await run_checks(Settings(data_dir=tmp_path, **settings_of(provider, **more)))
        if check.name == "sign-in provider"
    }
    assert (f"{provider.issuer} responds; keys: 1; sign-out there too", True, False) in results
    assert any(is_warning and "oidc_trust_email" in detail for detail, _, is_warning in results)
    provider.answers["/jwks"] = web.json_response({}, status=500)
    [broken] = [
        check
        for check in await run_checks(Settings(data_dir=tmp_path, **settings_of(provider)))
        if check.name == "sign-in provider"
    ]
    assert not broken.is_ok
    assert broken.detail == (
        f"{provider.issuer}: /jwks: it answered with the status 500. "
        "Check `oidc_issuer`, and that this machine reaches it."
    )
