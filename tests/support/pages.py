"""A browser without JavaScript, for tests of pages: it signs in, opens pages and submits their forms."""

from __future__ import annotations

import re
from typing import Any

from signoff.core.access import Role
from signoff.work.admin.people import create_user, sign_in_link
from support.live_server import Live


class Browser:
    """A user's browser at a server."""

    def __init__(self, server: Live, cookie: str) -> None:
        self.server = server
        self.headers = {"cookie": cookie, "accept": "text/html", "sec-fetch-site": "same-origin"}

    async def open(self, path: str, status: int = 200) -> str:
        """Return the page at `path`, which must have this status."""
        answered, text = await self.server.ask("GET", path, headers=self.headers, allow_redirects=False)
        assert answered == status, text
        return text

    async def submit(self, path: str, status: int = 303, headers: dict[str, str] | None = None, **form: Any) -> str:
        """Submit a form; return the page, or the address to which a redirect leads."""
        url, all_headers = self.server.url + path, self.headers | (headers or {})
        async with self.server.http.post(url, data=form, headers=all_headers, allow_redirects=False) as response:
            text = await response.text()
            assert response.status == status, text
            return response.headers["location"] if status == 303 else text

    async def change(self, path: str, status: int = 303, **form: Any) -> str:
        """Open the page at `path`, and submit its form with what the form says that it started from."""
        return await self.submit(path, status, expected=expected_of(await self.open(path)), **form)

    async def api(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        """Send a request to the API as this user; return its JSON."""
        answered, answer = await self.server.ask(method, path, headers=self.headers | {"accept": "*/*"}, **more)
        assert answered == status, answer
        return answer


async def signed_in(server: Live, role: Role, name: str) -> Browser:
    """Return the browser of a new user, who has signed in with a link."""
    user = await create_user(server.services, f"{name}@example.com", role)
    link = await sign_in_link(server.services, user)
    async with server.http.get(server.url + link, allow_redirects=False) as response:
        cookie = response.headers["set-cookie"].split(";")[0]
    server.http.cookie_jar.clear()
    return Browser(server, cookie)


def expected_of(page: str) -> str:
    """Return the hidden field of a form that says what the form started from."""
    return re.findall(r'name="expected" value="([^"]*)"', page)[0]


def cells(page: str, first: str) -> list[str]:
    """Return the texts of the row of a table whose heading is `first`, without it."""
    for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL):
        texts = [words(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        if first in texts:
            return texts[texts.index(first) + 1 :]
    raise AssertionError(f"no row begins with {first}")


def words(html: str) -> str:
    """Return the text of a piece of a page, with single spaces."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())
