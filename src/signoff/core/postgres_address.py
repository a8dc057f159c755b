"""Addresses of PostgreSQL as hosters and other drivers write them, in the form that asyncpg takes.

The parameters are those of libpq (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS),
and those that Prisma, Heroku, Neon and Supabase put into the addresses that they give.
"""

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec

CONNECT_SECONDS = 10.0
SCHEMES = re.compile(r"(postgres|postgresql)(\+(asyncpg|psycopg|psycopg2|psycopg_async|pg8000))?://", re.IGNORECASE)
FORM = "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
TRUE, FALSE = {"true", "1", "yes", "on", "require"}, {"false", "0", "no", "off", "disable"}
# Parameters of a client that change nothing for asyncpg, which has its own way to keep connections.
IGNORED = {
    "client_encoding", "connection_limit", "fallback_application_name", "gssencmode", "keepalives", "keepalives_count",
    "keepalives_idle", "keepalives_interval", "load_balance_hosts", "max_pool_size", "min_pool_size", "pool_size",
    "pool_timeout", "socket_timeout", "sslaccept", "sslcompression", "sslsni", "supa", "tcp_user_timeout",
}  # fmt: skip
# Parameters that protect or select something, and that asyncpg does not have: to ignore them would be wrong.
UNSUPPORTED = {"gssdelegation", "hostaddr", "replication", "require_auth", "requirepeer", "sslcertmode", "sslcrldir"}
# Parameters by which drivers say that prepared statements do not work: with a value of 0 or of false, or with `true`.
UNPREPARED = {"preparethreshold", "prepared_statement_cache_size", "prepared_statements", "statement_cache_size"}


class PostgresAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Address of a database, and how to connect to it."""

    dsn: str
    """The address for asyncpg; it may contain a password."""
    public_name: str
    """Hosts, ports and database, for messages."""
    connect_seconds: float = CONNECT_SECONDS
    """Time that a connection may take to open."""
    is_pooled: bool | None = None
    """True for a pooler that gives each transaction another connection, False for none; None to detect it."""
    uses_system_certificates: bool = False
    """True to verify the server's certificate, with the certificate authorities of this machine."""


def parse_postgres_address(url: str) -> PostgresAddress:
    """Return the address that `url` is. Raises ValueError, whose message contains no password."""
    url = url.strip()
    if (scheme := SCHEMES.match(url)) is None:
        raise ValueError(f"The address of the database is not one of PostgreSQL; {FORM}.")
    login, hosts, database, query = _parts(url[scheme.end() :])
    parameters = _parameters(query)
    if "schema" in parameters:
        parameters.setdefault("search_path", parameters.pop("schema"))
    host_list = _hosts(hosts or parameters.get("host", ""), parameters.get("port", ""))
    if "," in host_list and "target_session_attrs" not in parameters:
        parameters["target_session_attrs"] = "primary"  # a standby cannot be written to
    connect_seconds = _seconds(parameters.pop("connect_timeout", ""))
    is_pooled = _is_pooled(parameters)
    uses_system_certificates = _take_security(parameters)
    name = database or unquote(parameters.get("dbname") or parameters.get("database") or "")
    dsn_query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
    return PostgresAddress(
        dsn=f"postgresql://{login}{hosts}{f'/{quote(database)}' if database else ''}{dsn_query}",
        public_name=f"{host_list or 'localhost:5432'}{f'/{name}' if name else ''}",
        connect_seconds=connect_seconds,
        is_pooled=is_pooled,
        uses_system_certificates=uses_system_certificates,
    )


def _parts(rest: str) -> tuple[str, str, str, str]:
    """Return the login (with its `@`), the hosts, the database and the query of an address without its scheme."""
    main, _, query = rest.partition("?")
    netloc, _, path = main.partition("/")
    login, at, hosts = netloc.rpartition("@")
    # A special character in a password that is not encoded ends the host too early.
    if "#" in main or ("@" in path + query.partition("&")[0].partition("=")[0]) or not _is_host_list(hosts):
        raise ValueError(
            f"The hosts or the port of the database's address are not valid; {FORM}, and percent-encode special "
            "characters of the user and the password (`#` is %23, `/` is %2F, `?` is %3F, `@` is %40)."
        )
    user, colon, password = login.partition(":")
    return f"{_encoded(user)}{colon}{_encoded(password)}{at}", hosts, unquote(path), query


def _is_host_list(hosts: str) -> bool:
    """Return True for hosts with or without ports, separated by commas; each may be a name, an address or a socket."""
    return all(re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^\s:@\[\]/]*)(:\d{1,5})?", host) for host in hosts.split(","))


def _encoded(text: str) -> str:
    """Return `text` percent-encoded; what is encoded already stays as it is."""
    return quote(text, safe="%") if re.search(r"%(?![0-9a-fA-F]{2})", text) is None else quote(text, safe="")


def _parameters(query: str) -> dict[str, str]:
    parameters = {name.strip(): value for name, value in parse_qsl(query, keep_blank_values=True) if value}
    for name in sorted(parameters):
        if name.lower() in UNSUPPORTED:
            raise ValueError(f"The parameter {name} of the database's address is not supported; remove it.")
    return {name: value for name, value in parameters.items() if name.lower() not in IGNORED}


def _hosts(hosts: str, ports: str) -> str:
    """Return `hosts` with a port each, as a person reads them; an empty text for no hosts."""
    numbers = ports.split(",") if ports else ["5432"]
    entries = [unquote(host) for host in hosts.split(",")] if hosts else []
    return ", ".join(
        host if _has_port(host) else f"{host}:{numbers[min(index, len(numbers) - 1)]}"
        for index, host in enumerate(entries)
    )


def _has_port(host: str) -> bool:
    return host.startswith("/") or re.search(r"(^[^:]+|\]):\d+$", host) is not None


def _seconds(text: str) -> float:
    """Return the seconds of `connect_timeout`; 0 and a negative number are no limit for libpq. Raises ValueError."""
    try:
        seconds = float(text or 0)
    except ValueError:
        raise ValueError("`connect_timeout` in the address of the database must be a number of seconds.") from None
    return seconds if 0 < seconds < CONNECT_SECONDS else CONNECT_SECONDS


def _is_pooled(parameters: dict[str, str]) -> bool | None:
    """Take the parameters by which other programs tell of a pooler; return None if there are none."""
    is_pooled = None
    for name in [name for name in parameters if name.lower() in {"pgbouncer", *UNPREPARED}]:
        value = parameters.pop(name).lower()
        is_pooled = value in (TRUE if name.lower() == "pgbouncer" else FALSE)
    return is_pooled


def _take_security(parameters: dict[str, str]) -> bool:
    """Put parameters of encryption into asyncpg's form; return True if the certificate is to be verified.

    asyncpg has no channel binding, which proves who the server is. Its certificate does that as well.
    """
    ssl = parameters.pop("ssl", "").lower()
    if ssl and "sslmode" not in parameters:
        parameters["sslmode"] = "require" if ssl in TRUE else "disable" if ssl in FALSE else ssl
    if parameters.get("sslmode") == "no-verify":
        parameters["sslmode"] = "require"
    if parameters.pop("channel_binding", "") == "require" and "sslrootcert" not in parameters:
        parameters["sslrootcert"] = "system"
    if parameters.get("sslrootcert") != "system":
        return False
    del parameters["sslrootcert"]
    parameters["sslmode"] = "verify-full"
    return True
