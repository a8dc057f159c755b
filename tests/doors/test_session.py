"""Sign-in, sign-out, and the first page of the dashboard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from signoff.core.api_tokens import hash_token
from signoff.work.admin.people import create_user, sign_in_link
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio


async def session_headers(server: Live, role: str = "admin") -> dict[str, str]:
    """Sign in with a link, and return the headers with the session cookie."""
    user = await create_user(server.services, f"{role}@example.com", role)  # type: ignore[arg-type]
    link = await sign_in_link(server.services, user)
    async with server.http.get(server.url + link, allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (303, "/")
        cookie = response.headers["set-cookie"]
    server.http.cookie_jar.clear()
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    return {"cookie": cookie.split(";")[0]}


async def test_a_sign_in_link_works_once(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user = await create_user(server.services, "a@example.com", "admin")
        link = await sign_in_link(server.services, user)
        for status in (303, 401):
            async with server.http.get(server.url + link, allow_redirects=False) as response:
                assert response.status == status


async def test_a_session_is_signed_in_until_it_ends(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        headers = await session_headers(server)
        assert (await server.ask("GET", "/jobs", headers=headers))[0] == 200
        assert (await server.ask("DELETE", "/api/session", headers=headers))[0] == 200
        assert (await server.ask("GET", "/jobs", headers=headers))[0] == 401


async def test_a_password_signs_in_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await create_user(server.services, "a@example.com", "user", "correct horse")
        for email, password, status in (
            ("a@example.com", "correct horse", 200),
            ("A@Example.com", "correct horse", 200),
            ("a@example.com", "wrong", 401),
            ("nobody@example.com", "wrong", 401),
        ):
            body = {"email": email, "password": password}
            assert (await server.ask("POST", "/api/session", json=body))[0] == status
        assert (await server.ask("POST", "/api/session", data=b"{"))[0] == 400


async def test_a_forged_request_with_a_session_is_refused(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        headers = await session_headers(server)
        for forged in ({"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "http://evil"}):
            body: dict[str, Any] = {"json": chat("hello"), "headers": headers | forged}
            assert (await server.ask("POST", "/enqueue", **body))[0] == 403
            assert (await server.ask("POST", "/v1/chat/completions", **body))[0] == 403
        same = headers | {"sec-fetch-site": "same-origin"}
        assert (await server.ask("POST", "/v1/chat/completions", json=chat("hello"), headers=same))[0] == 200


async def test_the_scheme_of_the_origin_counts(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        headers, own = await session_headers(server), server.url.partition("://")[2]
        body: dict[str, Any] = {"json": chat("hello")}
        for origin, status in ((f"http://{own}", 200), (f"https://{own}", 403), (f"ftp://{own}", 403), (own, 403)):
            assert (await server.ask("POST", "/enqueue", headers=headers | {"origin": origin}, **body))[0] == status
        # behind a proxy on this host that takes https, with and without the port that https has by default
        secure = {
            "cookie": headers["cookie"].replace("signoff_session=", "__Host-signoff_session="),
            "x-forwarded-proto": "https",
            "host": "signoff.example",
            "origin": "https://signoff.example",
        }
        for more in ({}, {"host": "signoff.example:443"}, {"origin": "https://SIGNOFF.example:443"}):
            assert (await server.ask("POST", "/enqueue", headers=secure | more, **body))[0] == 200, more
        for more in ({"origin": "http://signoff.example"}, {"origin": "https://signoff.example:80"}):
            assert (await server.ask("POST", "/enqueue", headers=secure | more, **body))[0] == 403, more


async def test_only_the_cookie_of_https_counts_over_https(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        plain, over_https = await session_headers(server), {"x-forwarded-proto": "https"}
        secure = {"cookie": plain["cookie"].replace("signoff_session=", "__Host-signoff_session=")}
        for headers, status in (
            (plain, 200),
            (secure, 401),
            (plain | over_https, 401),  # a page over http, or of another host of the domain, may have set it
            (secure | over_https, 200),
            ({"cookie": f"signoff_session=stale; {secure['cookie']}"} | over_https, 200),
        ):
            assert (await server.ask("GET", "/jobs", headers=headers))[0] == status, headers


async def test_a_page_of_another_site_cannot_sign_its_visitors_in(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        user = await create_user(server.services, "a@example.com", "user", "correct horse")
        body = b'{"email": "a@example.com", "password": "correct horse"}'
        for forged in (
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"origin": "https://evil.example"},
        ):
            headers = forged | {"content-type": "text/plain"}
            async with server.http.post(server.url + "/api/session", data=body, headers=headers) as response:
                assert response.status == 403
                assert "set-cookie" not in response.headers
            # a link signs in when it is followed, not when a page loads it as an image or a frame
            for part in ({}, {"sec-fetch-dest": "image"}, {"sec-fetch-dest": "iframe", "sec-fetch-mode": "navigate"}):
                link = await sign_in_link(server.services, user)
                async with server.http.get(server.url + link, headers=forged | part, allow_redirects=False) as response:
                    assert response.status == 403
                    assert "set-cookie" not in response.headers
        followed = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document", "sec-fetch-mode": "navigate"}
        async with server.http.get(server.url + link, headers=followed, allow_redirects=False) as response:
            assert response.status == 303
        own = {"origin": server.url}
        for headers in ({}, own, {"sec-fetch-site": "same-origin"}):
            assert (await server.ask("POST", "/api/session", data=body, headers=headers))[0] == 200


async def test_session_tokens_and_api_tokens_are_not_interchangeable(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        headers = await session_headers(server)
        token = headers["cookie"].partition("=")[2]
        assert (await server.ask("GET", "/jobs", token))[0] == 401
        api = await server.token()
        assert (await server.ask("GET", "/jobs", headers={"cookie": f"signoff_session={api}"}))[0] == 401


async def test_a_token_that_is_switched_off_stops_working_within_a_second(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        assert (await server.ask("GET", "/jobs", token))[0] == 200
        await server.services.store.people.end_token(hash_token(token))

        async def refused() -> bool | None:
            return (await server.ask("GET", "/jobs", token))[0] == 401 or None

        await until(refused)


async def test_the_first_page_shows_only_the_sign_in_without_a_session(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        status, page = await server.ask("GET", "/")
        assert status == 200
        assert "Sign in" in page
        assert re.findall(r'<form .*action="(.*?)"', page) == ["/api/session"]
        assert "<h1>Jobs</h1>" not in page


async def test_an_anonymous_visitor_sees_the_page_and_can_sign_in(tmp_path: Path) -> None:
    async with live(tmp_path, anonymous_role="user") as server:
        _, page = await server.ask("GET", "/")
        assert "<h1>Jobs</h1>" in page
        assert 'href="/dashboard/sign-in"' in page
        assert 'action="/dashboard/sign-out"' not in page
        _, page = await server.ask("GET", "/dashboard/sign-in")
        assert 'action="/api/session"' in page


async def test_the_page_loads_nothing_from_other_origins(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        async with server.http.get(server.url + "/") as response:
            assert "default-src 'self'" in response.headers["content-security-policy"]
        assert (await server.ask("GET", "/static/tokens.css"))[0] == 200


# The forms


async def post_form(server: Live, path: str, form: dict[str, str], **headers: str) -> tuple[int, str, str]:
    """Submit a form as the page does; return the status, the address of the redirect, and the cookie."""
    headers = {"sec-fetch-site": "same-origin"} | headers
    async with server.http.post(server.url + path, data=form, headers=headers, allow_redirects=False) as response:
        cookie = response.headers.get("set-cookie", "").split(";")[0]
        server.http.cookie_jar.clear()
        return response.status, response.headers.get("location", ""), cookie


async def test_the_form_signs_in_and_the_button_signs_out(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await create_user(server.services, "a@example.com", "user", "correct horse")
        form = {"email": "a@example.com", "password": "correct horse"}

        status, location, cookie = await post_form(server, "/api/session", form)
        assert (status, location) == (303, "/")
        _, page = await server.ask("GET", "/", headers={"cookie": cookie})
        assert "a@example.com (user)" in page
        assert 'action="/dashboard/sign-out"' in page
        assert 'type="password"' not in page

        for _ in range(2):  # the second time, the session is over already
            status, location, deleted = await post_form(server, "/dashboard/sign-out", {}, cookie=cookie)
            assert (status, location, deleted) == (303, "/", "signoff_session=")
        assert (await server.ask("GET", "/jobs", headers={"cookie": cookie}))[0] == 401


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"email": "a@example.com", "password": "wrong"}, "The e-mail address or the password is wrong."),
        ({"email": "nobody@example.com", "password": "wrong"}, "The e-mail address or the password is wrong."),
        ({"email": "a@example.com"}, "Fill in the e-mail address and the password."),
        ({"email": "a@example.com", "password": "p" * 2000}, "Fill in the e-mail address and the password."),
    ],
)
async def test_the_page_shows_the_error_of_the_form(form: dict[str, str], text: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await create_user(server.services, "a@example.com", "user", "correct horse")

        status, location, cookie = await post_form(server, "/api/session", form)
        _, page = await server.ask("GET", location)

        assert (status, cookie) == (303, "")
        assert f'role="alert">{text}</p>' in page
        assert form["email"] not in page + location


async def test_the_page_says_when_to_try_again_after_too_many_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signoff.core.sign_in.FIRST_WAIT_SECONDS", 600.0)
    async with live(tmp_path) as server:
        server.services.runtime.passwords._verify = lambda *_: False  # type: ignore[method-assign]
        for _ in range(6):
            _, location, _ = await post_form(server, "/api/session", {"email": "a@example.com", "password": "wrong"})

        _, page = await server.ask("GET", location)

        assert re.search(r"There were too many sign-ins. You can try again in \d+ seconds.", page)


async def test_the_page_shows_no_text_of_its_address(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        for query in ("error=<b>call-me</b>", "error=unauthorized&retry_after=<b>call-me</b>", "error=call-me"):
            assert "call-me" not in (await server.ask("GET", f"/?{query}"))[1]


async def test_a_sign_in_from_another_site_is_refused(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await create_user(server.services, "a@example.com", "user", "correct horse")
        form = {"email": "a@example.com", "password": "correct horse"}
        for forged in ({"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}):
            assert (await post_form(server, "/api/session", form, **forged))[::2] == (403, "")
            assert (await server.ask("POST", "/api/session", json=form, headers=forged))[0] == 403
            assert (await post_form(server, "/dashboard/sign-out", {}, **forged))[0] == 403


async def test_json_with_the_content_type_of_a_form_signs_in_as_json(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await create_user(server.services, "a@example.com", "user", "correct horse")
        headers = {"content-type": "application/x-www-form-urlencoded"}
        for password, status in (("correct horse", 200), ("wrong", 401)):
            body = msgspec.json.encode({"email": "a@example.com", "password": password})
            assert (await server.ask("POST", "/api/session", data=body, headers=headers))[0] == status


@pytest.mark.parametrize("accept", ["text/html,*/*", "*/*"])
async def test_an_error_of_a_page_is_a_page_for_browsers(accept: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        form = {"id": "nowhere", "verdict": "approve", "round": "1", "seen": "x"}
        decided = await server.ask("POST", "/dashboard/decide", token, data=form, headers={"accept": accept})
        signed_in = await server.ask("GET", "/signin/used", headers={"accept": accept})
        for (status, page), expected, text, back in (
            (decided, 404, "does not exist", 'href="/dashboard/review">Back to Review</a>'),
            (signed_in, 401, "was used already, or is too old", 'href="/">Back to the start page</a>'),
        ):
            assert status == expected
            if "html" in accept:
                assert text in page
                assert back in page
            else:
                assert page["status"] == expected
