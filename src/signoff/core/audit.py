"""Entries of the audit log: who changed what in the configuration, without secrets."""

from collections.abc import Sequence
from typing import Any

import msgspec

from signoff.core.access import Token, TokenKind
from signoff.core.cache import CacheFilter
from signoff.core.wire import format_time

# Fields that hold a secret, and the name under which an entry says that it was set or changed.
SECRETS = {"password_hash": "password", "sealed": "url"}
# Fields that entries leave out: secrets, digests of tokens, and texts of prompts and pipelines. Texts can be long, and
# their versions are stored anyway.
OMITTED = frozenset({"digest", "body", "tree", *SECRETS})
TOKEN_NOUNS: dict[TokenKind, str] = {"api": "token", "signin": "sign_in_link", "session": "session"}


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Someone who makes changes, as entries of the audit log name them."""

    name: str = "system"
    """`user:EMAIL`, `operator` for a command, `oidc` for a sign-in by a provider, or `system` for a process."""
    client: str | None = None
    """Address of the client if the change came over HTTP."""


class AuditChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the configuration, as the audit log describes it."""

    action: str
    """A noun and a past participle, such as `model_changed`."""
    subject: str
    """The kind and the name or id of what was changed, such as `model:gpt-4o`."""
    before: dict[str, Any] | None = None
    """The state before, without secrets; None if there was none."""
    after: dict[str, Any] | None = None
    """The state after, without secrets; None if there is none. Its `changed_secrets` names secrets that changed."""


class AuditEntry(AuditChange, frozen=True, kw_only=True):
    """An entry of the audit log."""

    id: int
    """Number of the entry; later entries have higher ones."""
    at: int
    """Time of the change by the database's clock, in microseconds since 1970, UTC."""
    actor: str
    """Name of the actor; see `Actor.name`."""
    client: str | None = None
    """Address of the client; None if the change did not come over HTTP."""


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Entries of the audit log to list, newest first; the conditions are joined by AND."""

    actor: str | None = None
    """Name of the actor; None for any."""
    subject: str | None = None
    """Subject of the change; None for any."""
    action: str | None = None
    """Action; None for any."""
    since: int | None = None
    """Earliest time, in microseconds since 1970, UTC; None for no bound."""
    until: int | None = None
    """Time before which the entries were made, in microseconds since 1970, UTC; None for no bound."""
    after_id: int | None = None
    """Cursor: the id of the last entry of the previous page; None for the first page."""
    limit: int = 50
    """Maximum number of entries in the list."""


def change_of(noun: str, name: str | int, before: msgspec.Struct | None, after: msgspec.Struct | None) -> AuditChange:
    """Describe the change from one state of a thing to another; None stands for a thing that does not exist."""
    verb = "created" if before is None else "removed" if after is None else "changed"
    new = None if after is None else _public(after) | _changed_secrets(before, after)
    old = None if before is None else _public(before)
    return AuditChange(action=f"{noun}_{verb}", subject=f"{noun}:{name}", before=old, after=new)


def token_created(token: Token) -> AuditChange:
    """Describe the creation of a token or a sign-in link."""
    return change_of(TOKEN_NOUNS[token.kind], token.id, None, token)


def token_revoked(token: Token) -> AuditChange:
    """Describe the revocation of a token or a session."""
    noun = TOKEN_NOUNS[token.kind]
    before = _public(msgspec.structs.replace(token, active=True))
    return AuditChange(action=f"{noun}_revoked", subject=f"{noun}:{token.id}", before=before)


def sessions_ended(email: str, count: int) -> AuditChange:
    """Describe the end of all sessions and sign-in links of a user."""
    return AuditChange(action="sessions_ended", subject=f"user:{email}", after={"ended": count})


def account_bound(email: str, issuer: str, subject: str, created: msgspec.Struct | None = None) -> AuditChange:
    """Describe the binding of an account at an OpenID Connect provider to a user; `created` is a new user."""
    account = {"issuer": issuer, "account": subject}
    if created is None:
        return AuditChange(action="account_bound", subject=f"user:{email}", after=account)
    change = change_of("user", email, None, created)
    return msgspec.structs.replace(change, after=(change.after or {}) | account)


def accounts_unbound(email: str, accounts: Sequence[tuple[str, str]]) -> AuditChange:
    """Describe the end of the binding of accounts, which are pairs of an issuer and an id, to a user."""
    before = {"accounts": [{"issuer": issuer, "account": subject} for issuer, subject in accounts]}
    return AuditChange(action="accounts_unbound", subject=f"user:{email}", before=before)


def label_moved(noun: str, name: str, label: str, old: int | None, new: int | None) -> AuditChange:
    """Describe the move of a label of a prompt or pipeline from one version to another; None stands for no version."""
    before, after = (None if number is None else {"label": label, "version": number} for number in (old, new))
    return AuditChange(action=f"{noun}_label_changed", subject=f"{noun}:{name}", before=before, after=after)


def sharing_changed(noun: str, name: str, *, old: bool, new: bool) -> AuditChange:
    """Describe the change of who may use a prompt or a pipeline."""
    before, after = {"shared": old}, {"shared": new}
    return AuditChange(action=f"{noun}_sharing_changed", subject=f"{noun}:{name}", before=before, after=after)


def functions_changed(created: Sequence[str], changed: Sequence[str], deleted: Sequence[str]) -> AuditChange:
    """Describe the change of the registered functions, by their names."""
    after = {"created": [*created], "changed": [*changed], "deleted": [*deleted]}
    return AuditChange(action="functions_changed", subject="functions", after=after)


def encryption_key_changed(old: set[str], new: set[str]) -> AuditChange:
    """Describe the change of the keys that encrypt stored secrets, by their fingerprints."""
    before, after = {"fingerprints": sorted(old)}, {"fingerprints": sorted(new)}
    return AuditChange(action="encryption_key_changed", subject="encryption_key", before=before, after=after)


def signing_key_changed(old: str | None, new: str, *, is_lost: bool) -> AuditChange:
    """Describe the change of the key that signs receipts, by ids; None stands for no key."""
    before = None if old is None else {"key": old}
    after = {"key": new, "old_key_is_lost": is_lost}
    return AuditChange(action="signing_key_changed", subject="signing_key", before=before, after=after)


def receipts_archived(until: int) -> AuditChange:
    """Describe the removal of old receipts from the database."""
    return AuditChange(action="receipts_archived", subject="receipts", after={"archived_until": until})


def user_erased(user_id: int) -> AuditChange:
    """Describe the erasure of a user, who is not named by their email."""
    return AuditChange(action="user_erased", subject=f"user_id:{user_id}")


def cache_cleared(query: CacheFilter, count: int | None) -> AuditChange:
    """Describe the deletion of cached answers; `count` is None if the cache did not say how many."""
    return AuditChange(action="cache_cleared", subject="cache", after=_public(query) | {"deleted": count})


def entry_as_json(entry: AuditEntry) -> dict[str, Any]:
    """Return the JSON form of an entry."""
    return msgspec.structs.asdict(entry) | {"at": format_time(entry.at)}


def _public(state: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of `state` that may be shown, as JSON values."""
    fields = ((name, getattr(state, name)) for name in state.__struct_fields__ if name not in OMITTED)
    return {name: msgspec.to_builtins(value) for name, value in fields}


def _changed_secrets(before: msgspec.Struct | None, after: msgspec.Struct) -> dict[str, Any]:
    fields = [name for name in SECRETS if getattr(before, name, None) != getattr(after, name, None)]
    return {"changed_secrets": [SECRETS[name] for name in fields]} if fields else {}
