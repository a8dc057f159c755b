"""`signoff audit`: the log of all changes of the configuration."""

import json
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from signoff.commands.help import CommandGroup
from signoff.commands.prices import DATE_FORMATS
from signoff.commands.terminal import OPERATOR, print_table, run, table_of
from signoff.core.audit import AuditEntry, AuditFilter, entry_as_json
from signoff.core.wire import format_time, parse_time
from signoff.settings import load
from signoff.work.admin.audit import list_audit
from signoff.work.services import Services

PAGE, TABLE_ROWS = 1000, 100
audit_commands = CommandGroup(panel="Data")


@audit_commands.register(
    "audit", "signoff audit --subject model:gpt-4o --since 2026-11-01", "signoff audit --json > audit.jsonl"
)
def audit(
    actor: Annotated[str | None, typer.Option(help="Only changes by user:EMAIL, operator, oidc or system.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only changes of this subject, such as model:NAME.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=DATE_FORMATS, help="Only changes from this time (UTC) on.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print every entry in full, as JSON Lines.")] = False,
) -> None:
    """Print the newest changes of the configuration, or export all of them."""
    start = None if since is None else parse_time(since.replace(tzinfo=UTC))
    filters = AuditFilter(actor=actor, subject=subject, since=start, limit=PAGE if as_json else TABLE_ROWS)
    if as_json:
        run(load(), lambda services: _export(services, filters))
    else:
        _print_table(run(load(), lambda services: list_audit(services, OPERATOR, filters)))


async def _export(services: Services, filters: AuditFilter) -> None:
    while page := await list_audit(services, OPERATOR, filters):
        for entry in page:
            typer.echo(json.dumps(entry_as_json(entry)))
        filters = msgspec.structs.replace(filters, after_id=page[-1].id)


def _print_table(entries: list[AuditEntry]) -> None:
    table = table_of("id", "at", "actor", "action", "subject", "client")
    for entry in entries:
        texts = (format_time(entry.at), entry.actor, entry.action, entry.subject, entry.client or "")
        table.add_row(str(entry.id), *texts)
    print_table(table)
