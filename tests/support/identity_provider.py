"""A small OpenID Connect provider over HTTP, which answers as a test says, also wrongly."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from signoff.core.oidc import code_challenge
from support.live_server import Live

CLIENT_ID, SECRET = "signoff", "s3cret:&%"
MINUTE = 60


@functools.cache
def first_key() -> RSAKey:
    """Return the key of all small providers, which takes a tenth of a second to make."""
    return RSAKey.generate_key(2048, {"kid": "first", "use": "sig"})


class SmallProvider:
    """A provider with one client, whose accounts are claims that a test gives."""

    def __init__(self) -> None:
        self.issuer = ""
        """Address of the provider."""
        self.keys = [first_key()]
        """Keys that it publishes. The last one signs."""
        self.changes: dict[str, Any] = {}
        """Changes of the claims of ID tokens; None leaves one out."""
        self.information: dict[str, Any] | None = None
        """Answer of the user-information endpoint; None for no such endpoint."""
        self.metadata: dict[str, Any] = {}
        """Members of the discovery document that differ from the right ones; None to leave one out."""
        self.answers: dict[str, web.Response] = {}
        """Answers by path, in place of the right ones."""
        self.is_hanging = False
        """True to answer nothing."""
        self.requests: list[str] = []
        """Paths of all requests."""
        self._codes: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}

    def grant(self, address: str, claims: dict[str, Any]) -> dict[str, str]:
        """Let an account with `claims` agree to the request of an authorization address; return the answer."""
        request = dict(parse_qsl(urlsplit(address).query))
        assert request["response_type"] == "code"
        assert request["client_id"] == CLIENT_ID
        assert request["code_challenge_method"] == "S256"
        code = f"code-{len(self.requests)}-{len(self._codes)}"
        self._codes[code] = (request, claims)
        return {"code": code, "state": request["state"]}

    def id_token(self, request: dict[str, str], claims: dict[str, Any]) -> str:
        """Return the ID token for a request, signed by the last key."""
        now = int(time.time())
        right = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 5 * MINUTE, "nonce": request["nonce"]}
        all_claims = {name: value for name, value in (right | claims | self.changes).items() if value is not None}
        key = self.keys[-1]
        return jwt.encode({"alg": "RS256", "kid": key.kid}, all_claims, key, algorithms=["RS256"])

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        self.requests.append(request.path)
        if self.is_hanging:
            await asyncio.Event().wait()
        if (answer := self.answers.get(request.path)) is not None:  # a response can be sent once
            return web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))
        match request.path:
            case "/.well-known/openid-configuration":
                return web.json_response(self._document())
            case "/jwks":
                return web.json_response(KeySet([*self.keys]).as_dict(private=False))
            case "/token":
                return await self._redeem(request)
            case "/userinfo":
                is_known = request.headers.get("authorization") == "Bearer access"
                return web.json_response(self.information if is_known else {}, status=200 if is_known else 401)
            case _:
                return web.json_response({}, status=404)

    def _document(self) -> dict[str, Any]:
        right = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize?tenant=a",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "end_session_endpoint": f"{self.issuer}/logout",
            "userinfo_endpoint": None if self.information is None else f"{self.issuer}/userinfo",
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
        }
        return {name: value for name, value in (right | self.metadata).items() if value is not None}

    async def _redeem(self, http: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await http.post()).items()}
        credentials = base64.b64decode(http.headers.get("authorization", "").removeprefix("Basic ")).decode()
        client = [unquote_plus(part) for part in credentials.partition(":")[::2]]
        if client == ["", ""]:
            client = [form.get("client_id", ""), form.get("client_secret", "")]
        if client != [CLIENT_ID, SECRET]:
            return web.json_response({"error": "invalid_client"}, status=401)
        request, claims = self._codes.pop(form["code"], ({}, {}))
        is_right = form["redirect_uri"] == request.get("redirect_uri") and form["grant_type"] == "authorization_code"
        if not is_right or code_challenge(form["code_verifier"]) != request["code_challenge"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        id_token = self.id_token(request, claims)
        return web.json_response({"id_token": id_token, "access_token": "access", "token_type": "Bearer"})


@contextlib.asynccontextmanager
async def small_provider() -> AsyncIterator[SmallProvider]:
    """Yield a running provider on a free port."""
    provider = SmallProvider()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", provider.handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    provider.issuer = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield provider
    finally:
        await runner.cleanup()


def settings_of(provider: SmallProvider, **more: Any) -> dict[str, Any]:
    """Return the settings for signing in by `provider`, where the claim `groups` decides the role."""
    own = {
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT_ID,
        "oidc_client_secret": SECRET,
        "oidc_name": "Acme SSO",
        "oidc_role_claim": "realm.groups",
        "oidc_roles": {"ops": "admin", "desk": "reviewer", "staff": "user"},
    }
    return own | more


def account(subject: str = "ann-1", email: str = "ann@example.com", *groups: str, **more: Any) -> dict[str, Any]:
    """Return the claims of an account with a verified address."""
    return {"sub": subject, "email": email, "email_verified": True, "realm": {"groups": [*groups]}} | more


class Visitor:
    """A browser: it keeps cookies, and follows no redirect by itself."""

    def __init__(self, server: Live, **headers: str) -> None:
        self._server = server
        self._headers = headers
        self.cookies: dict[str, str] = {}
        """Cookies by name, whatever their path."""
        self.set_cookies: list[str] = []
        """Cookies that the last response has set, as it wrote them."""
        self.location = ""
        """Address to which the last response leads."""

    async def get(self, path: str, method: str = "GET", **more: Any) -> tuple[int, str]:
        """Send a request; return the status and the text of the response."""
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        headers = self._headers | ({"cookie": cookie} if cookie else {}) | more.pop("headers", {})
        url = self._server.url + path
        async with self._server.http.request(method, url, headers=headers, allow_redirects=False, **more) as response:
            self._server.http.cookie_jar.clear()
            self.set_cookies = response.headers.getall("set-cookie", [])
            for each in self.set_cookies:
                name, _, rest = each.partition("=")
                value = rest.partition(";")[0].strip('"')
                if "Max-Age=0" in each:
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = value
            self.location = response.headers.get("location", "")
            return response.status, await response.text()

    async def begin(self, query: str = "") -> str:
        """Begin a sign-in; return the address at the provider."""
        status, text = await self.get(f"/signin/oidc{query}")
        assert status == 303, text
        return self.location

    async def come_back(self, answer: dict[str, str], **more: Any) -> tuple[int, str]:
        """Come back from the provider with its answer."""
        return await self.get(f"/signin/oidc/callback?{urlencode(answer)}", **more)

    async def sign_in(self, provider: SmallProvider, claims: dict[str, Any], query: str = "") -> tuple[int, str]:
        """Sign in with an account; return the status and the text of the last response."""
        return await self.come_back(provider.grant(await self.begin(query), claims))

    async def me(self) -> tuple[str, str] | None:
        """Return the e-mail address and the role of the session; None without one."""
        status, text = await self.get("/api/users?limit=1000")
        if status != 200:
            return None
        _, sessions = await self.get("/api/sessions")
        current = next(each for each in json.loads(sessions)["data"] if each["current"])
        user = next(each for each in json.loads(text)["data"] if each["id"] == current["user_id"])
        return user["email"], user["role"]
