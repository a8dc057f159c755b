"""`signoff user` and `signoff token`: users, sign-in links and tokens."""

import sys
from typing import Annotated

import typer

from signoff.commands.terminal import ALWAYS_OR_NEVER, address_of, choice, out, run, stop
from signoff.core.access import ROLES, User
from signoff.settings import load
from signoff.work.admin.people import create_token, create_user, sign_in_link
from signoff.work.services import Services

users, tokens = typer.Typer(help="Manage users."), typer.Typer(help="Manage tokens.")
NewRole = Annotated[str | None, typer.Option(help=" | ".join(ROLES))]


@users.command("create")
def user_create(
    email: str,
    role: NewRole = None,
    *,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
) -> None:
    """Create a user, or change the options that are given."""
    new_role = choice("role", role, ROLES)
    password = sys.stdin.readline().rstrip("\n") if password_stdin else None

    async def create(services: Services) -> User:
        existing = await services.store.people.user(email)
        return await create_user(services, email, new_role or (existing.role if existing else "user"), password)

    user = run(load(), create)
    out.print(f"{user.email} is a {user.role}.")


@users.command("link")
def user_link(email: str) -> None:
    """Print a link that signs the user in, once and within a day."""
    settings = load()

    async def link(services: Services) -> str:
        user = await services.store.people.user(email)
        if user is None:
            stop(f"No user has the e-mail address {email}; create one with: signoff user create {email}")
        return await sign_in_link(services, user)

    out.print(address_of(settings.host, settings.port) + run(settings, link))


@tokens.command("create")
def token_create(
    email: str,
    role: NewRole = None,
    name: Annotated[str, typer.Option(help="Description of what the token is for.")] = "",
    cache: Annotated[str | None, typer.Option(help="always | never; default: as each request.")] = None,
    key: Annotated[int | None, typer.Option(help="Id of the upstream key for all requests with this token.")] = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the token.")] = False,
) -> None:
    """Create a token, and the user if there is none. The token is shown only once."""
    new_role, cache_rule = choice("role", role, ROLES), choice("cache", cache, ALWAYS_OR_NEVER)

    async def create(services: Services) -> str:
        user = await services.store.people.user(email) or await create_user(services, email, new_role or "user")
        return await create_token(services, user, role=new_role, name=name, cache=cache_rule, key_id=key)

    token = run(load(), create)
    out.print(token if quiet else f"{token}\n\nThe token is not shown again.")
