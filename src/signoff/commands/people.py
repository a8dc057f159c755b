"""`signoff user` and `signoff token`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from signoff.commands.terminal import address_of, out, rule_named, run, stop
from signoff.core.access import ROLES, Role, User
from signoff.settings import load
from signoff.work.admin.people import create_token, create_user, sign_in_link
from signoff.work.services import Services

users, tokens = typer.Typer(help="People."), typer.Typer(help="Tokens.")


@users.command("create")
def user_create(
    email: str,
    role: Annotated[str | None, typer.Option(help=" | ".join(ROLES))] = None,
    *,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read a password.")] = False,
) -> None:
    """Makes a user, or changes what is given of one."""
    wanted = _role(role)
    password = sys.stdin.readline().rstrip("\n") if password_stdin else None

    async def create(services: Services) -> User:
        known = await services.store.people.user(email)
        return await create_user(services, email, wanted or (known.role if known else "user"), password)

    user = run(load(), create)
    out.print(f"{user.email} is a {user.role}.")


@users.command("link")
def user_link(email: str) -> None:
    """Prints a link that signs a user in once, within a day."""
    settings = load()

    async def link(services: Services) -> str:
        user = await services.store.people.user(email)
        return stop(f"There is no user {email}.") if user is None else await sign_in_link(services, user)

    out.print(address_of(settings.host, settings.port) + run(settings, link))


@tokens.command("create")
def token_create(
    email: str,
    role: Annotated[str | None, typer.Option(help=" | ".join(ROLES))] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    cache: Annotated[str | None, typer.Option(help="always | never; else as each request says.")] = None,
    key: Annotated[int | None, typer.Option(help="The upstream key that all requests with it are sent with.")] = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the token alone.")] = False,
) -> None:
    """Makes a token, and its user if there is none. It is shown this once."""
    wanted, rule = _role(role), rule_named(cache)

    async def create(services: Services) -> str:
        user = await services.store.people.user(email) or await create_user(services, email, wanted or "user")
        return await create_token(services, user, role=wanted, name=name, cache=rule, key_id=key)

    token = run(load(), create)
    out.print(token if quiet else f"{token}\n\nIt is not shown again.")


def _role(text: str | None) -> Role | None:
    if text is not None and text not in ROLES:
        stop(f"There is no role {text!r}; there are {', '.join(ROLES)}.")
    return text
