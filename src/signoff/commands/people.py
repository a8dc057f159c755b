"""`signoff user`, `signoff token` and `signoff session`: users, sign-in links, tokens and sessions."""

from typing import Annotated

import typer

from signoff.commands.help import CommandGroup
from signoff.commands.terminal import (
    ALWAYS_OR_NEVER,
    OPERATOR,
    address_of,
    choice,
    out,
    print_table,
    read_line,
    run,
    stop,
    table_of,
)
from signoff.core.access import ROLES, Token, TokenKind, User
from signoff.core.wire import format_time
from signoff.records import ERASED_EMAIL
from signoff.settings import load
from signoff.work.admin.erasure import erase_user
from signoff.work.admin.oidc import bind_account
from signoff.work.admin.people import (
    DAY_SECONDS,
    MAX_DAYS,
    UserChange,
    change_user,
    create_token,
    create_user,
    end_sessions,
    revoke_token,
    sign_in_link,
    user_with_email,
)
from signoff.work.services import Services

PAGE = 1000
users = CommandGroup("Manage users and sign-in links.", panel="Configuration")
tokens = CommandGroup("Manage API tokens.", panel="Configuration")
sessions = CommandGroup("Manage sessions of the pages.", panel="Configuration")
ListedEmail = Annotated[str | None, typer.Argument(metavar="EMAIL", help="Only those of this user.")]
Email = Annotated[str, typer.Argument(metavar="EMAIL", help="E-mail address of the user.")]
NewRole = Annotated[str | None, typer.Option(help=" | ".join(ROLES))]


@users.register("create", "signoff user create ann@example.com --role reviewer")
def user_create(
    email: Email,
    role: NewRole = None,
    *,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
) -> None:
    """Create a user, or change the options that are given. A new password or a smaller role ends all sessions."""
    new_role = choice("role", role, ROLES)
    password = read_line() if password_stdin else None

    async def create(services: Services) -> User:
        existing = await services.store.people.user(email)
        return await create_user(services, email, new_role or (existing.role if existing else "user"), password)

    user = run(load(), create)
    out.print(f"{user.email} has the role {user.role}{'' if user.active else ', and is disabled'}.")


@users.register("list", "signoff user list")
def user_list() -> None:
    """List all users."""

    async def list_users(services: Services) -> list[User]:
        return await services.store.people.users()

    table = table_of("id", "email", "role", "state", "password")
    for user in run(load(), list_users):
        has_password = "" if user.password_hash is None else "yes"
        table.add_row(str(user.id), user.email, user.role, "active" if user.active else "disabled", has_password)
    print_table(table)


@users.register("disable", "signoff user disable ann@example.com")
def user_disable(email: Email) -> None:
    """Refuse all tokens of a user, and end all sessions; running servers do so within a second."""
    _set_active(email, active=False)


@users.register("erase", "signoff user erase ann@example.com")
def user_erase(
    email: Email,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for a confirmation.")] = False,
) -> None:
    """Erase all that a user sent and got, and disable them for good. If it is interrupted, servers go on with it."""
    if not yes:
        typer.confirm(f"Erase all requests and answers of {email}?", abort=True)

    async def erase(services: Services) -> tuple[int, User]:
        user = await user_with_email(services, email)
        return await erase_user(services, OPERATOR, user.id), user

    count, user = run(load(), erase)
    out.print(f"Erased {count} jobs. The user is now {ERASED_EMAIL.format(user.id)}; backups still have their data.")


@users.register("enable", "signoff user enable ann@example.com")
def user_enable(email: Email) -> None:
    """Accept the tokens of a user again; sessions stay ended."""
    _set_active(email, active=True)


def _set_active(email: str, *, active: bool) -> None:
    async def change(services: Services) -> User:
        user = await user_with_email(services, email)
        return await change_user(services, OPERATOR, user.id, UserChange(active=active))

    user = run(load(), change)
    out.print(f"{user.email} is {'active' if user.active else 'disabled'}.")


@users.register("bind", "signoff user bind ann@example.com 248289761001")
def user_bind(
    email: Email,
    subject: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Id of the account at the provider: its `sub`.")],
) -> None:
    """Let an account of the OpenID Connect provider sign in as a user."""

    async def bind(services: Services) -> User:
        user = await user_with_email(services, email)
        await bind_account(services, user.id, subject)
        return user

    out.print(f"The account {subject} signs in as {run(load(), bind).email}.")


@users.register("unbind", "signoff user unbind ann@example.com")
def user_unbind(email: Email) -> None:
    """Let no account of an OpenID Connect provider sign in as a user any more, and end the user's sessions."""

    async def unbind(services: Services) -> int:
        user = await user_with_email(services, email)
        return await services.store.people.unbind_accounts(user.id)

    out.print(f"Unbound accounts of {email}: {run(load(), unbind)}.")


@users.register("link", "signoff user link ann@example.com")
def user_link(email: Email) -> None:
    """Print a link that signs the user in, once and within a day. It ends the user's former links."""
    settings = load()

    async def link(services: Services) -> str:
        return await sign_in_link(services, await user_with_email(services, email))

    address = (settings.public_url or address_of(settings.host, settings.port)).rstrip("/")
    out.print(address + run(settings, link))


@tokens.register(
    "create",
    "signoff token create ann@example.com --name laptop --days 30",
    "TOKEN=$(signoff token create ann@example.com --quiet)",
)
def token_create(
    email: Email,
    role: NewRole = None,
    name: Annotated[str, typer.Option(help="Description of what the token is for.")] = "",
    cache: Annotated[str | None, typer.Option(help="always | never; default: as each request.")] = None,
    key: Annotated[int | None, typer.Option(help="Id of the upstream key for all requests with this token.")] = None,
    days: Annotated[float | None, typer.Option(help="Days until the token expires; default: never.")] = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the token.")] = False,
) -> None:
    """Create a token, and the user if there is none. The token is shown only once."""
    new_role, cache_rule = choice("role", role, ROLES), choice("cache", cache, ALWAYS_OR_NEVER)
    if days is not None and not 0 < days <= MAX_DAYS:
        stop(f"--days must be above 0 and at most {MAX_DAYS} (got {days}).")
    seconds = None if days is None else days * DAY_SECONDS

    async def create(services: Services) -> str:
        user = await services.store.people.user(email) or await create_user(services, email, new_role or "user")
        return await create_token(
            services, user, role=new_role, name=name, seconds=seconds, cache=cache_rule, key_id=key
        )

    token = run(load(), create)
    out.print(token if quiet else f"{token}\n\nThe token is not shown again.")


@tokens.register("list", "signoff token list ann@example.com")
def token_list(email: ListedEmail = None) -> None:
    """List the tokens that are not revoked, with their last use to the minute."""
    _print_tokens("api", email)


@tokens.register("revoke", "signoff token revoke 3 4")
def token_revoke(
    token_ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Ids of `signoff token list`.")],
) -> None:
    """Revoke tokens; running servers refuse them within a second."""

    async def revoke(services: Services) -> None:
        for token_id in token_ids:
            await revoke_token(services, OPERATOR, "api", token_id)

    run(load(), revoke)
    out.print(f"Revoked: {', '.join(map(str, token_ids))}.")


@sessions.register("list", "signoff session list")
def session_list(email: ListedEmail = None) -> None:
    """List the sessions that have not ended."""
    _print_tokens("session", email)


@sessions.register("revoke", "signoff session revoke ann@example.com")
def session_revoke(email: Email) -> None:
    """End all sessions and sign-in links of a user; running servers refuse them within a second."""

    async def end(services: Services) -> int:
        user = await user_with_email(services, email)
        return await end_sessions(services, OPERATOR, user.id)

    out.print(f"Ended sessions and sign-in links of {email}: {run(load(), end)}.")


def _print_tokens(kind: TokenKind, email: str | None) -> None:
    async def list_all(services: Services) -> list[tuple[Token, User]]:
        user_id = None if email is None else (await user_with_email(services, email)).id
        listed, after_id = list[tuple[Token, User]](), 0
        while page := await services.store.people.tokens(kind, user_id, after_id=after_id, limit=PAGE):
            listed += page
            after_id = page[-1][0].id
        return listed

    table = table_of("id", "email", "name", "role", "created", "expires", "last used")
    for token, user in run(load(), list_all):
        times = (token.created_at, token.expires_at, token.last_used_at)
        texts = ("" if at is None else format_time(at)[:16].replace("T", " ") for at in times)
        table.add_row(str(token.id), user.email, token.name, token.role, *texts)
    print_table(table)
