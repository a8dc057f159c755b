"""Addresses of PostgreSQL as hosters write them: each is taken, or refused in one clear line without the password."""

import pytest

from signoff.core.postgres_address import CONNECT_SECONDS, parse_postgres_address

PLAIN = "postgresql://u@h/db"


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        ("postgres://u@h/db", PLAIN),
        ("POSTGRES://u@h/db", PLAIN),
        (" postgresql://u@h/db\n", PLAIN),
        ("postgresql+asyncpg://u@h/db", PLAIN),
        ("postgresql+psycopg2://u@h/db", PLAIN),
        ("postgresql://u:a%40b%23c@h/db", "postgresql://u:a%40b%23c@h/db"),
        ("postgresql://u:a@b:c@h/db", "postgresql://u:a%40b%3Ac@h/db"),
        ("postgresql://u:50%@h/db", "postgresql://u:50%25@h/db"),
        ("postgresql://u@[::1]:5433/db", "postgresql://u@[::1]:5433/db"),
        ("postgresql://u@h", "postgresql://u@h"),
        ("postgresql://u@h/", "postgresql://u@h"),
        ("postgresql://u@h/a%20b", "postgresql://u@h/a%20b"),
        ("postgresql:///db?host=/tmp&port=5444", "postgresql:///db?host=%2Ftmp&port=5444"),
        ("postgresql://%2Ftmp/db", "postgresql://%2Ftmp/db"),
        ("postgresql://?host=h&user=u&dbname=db", "postgresql://?host=h&user=u&dbname=db"),
        ("postgresql://u@h/db?options=-csearch_path%3Dx", "postgresql://u@h/db?options=-csearch_path%3Dx"),
        ("postgresql://u@h/db?options=-c%20a=b@c", "postgresql://u@h/db?options=-c%20a%3Db%40c"),
        ("postgresql://u@h/db?sslmode=require", "postgresql://u@h/db?sslmode=require"),
        ("postgresql://u@h/db?ssl=true", "postgresql://u@h/db?sslmode=require"),
        ("postgresql://u@h/db?sslmode=no-verify", "postgresql://u@h/db?sslmode=require"),
        ("postgresql://u@h/db?channel_binding=prefer", PLAIN),
        ("postgresql://u@h/db?keepalives=1&gssencmode=disable&connection_limit=5&pool_timeout=9", PLAIN),
        ("postgresql://u@h/db?schema=app", "postgresql://u@h/db?search_path=app"),
        ("postgresql://u@h/db?application_name=x", "postgresql://u@h/db?application_name=x"),
        ("postgresql://u@a:1,b:2/db", "postgresql://u@a:1,b:2/db?target_session_attrs=primary"),
        ("postgresql://u@a,b/db?target_session_attrs=any", "postgresql://u@a,b/db?target_session_attrs=any"),
    ],
)
def test_an_address_is_put_into_the_form_of_the_driver(url: str, dsn: str) -> None:
    assert parse_postgres_address(url).dsn == dsn


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:s3cret@h/db",
        "postgresql:u:s3cret@h/db",
        "postgresql://u:s3cret#1@h/db",
        "postgresql://u:s3cret/1@h/db",
        "postgresql://u:s3cret?1@h/db",
        "postgresql://u:s3cret@h:port/db",
        "postgresql://u:s3cret@h/db?connect_timeout=soon",
        "postgresql://u:s3cret@h/db?require_auth=scram-sha-256",
        "postgresql://u:s3cret@h/db?hostaddr=127.0.0.1",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_in_one_line_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        parse_postgres_address(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "is_pooled"),
    [
        ("", None),
        ("?pgbouncer=true", True),
        ("?pgbouncer=false", False),
        ("?statement_cache_size=0", True),
        ("?prepared_statement_cache_size=0", True),
        ("?prepareThreshold=0", True),
        ("?prepared_statements=false", True),
        ("?prepared_statements=true", False),
    ],
)
def test_an_address_can_tell_of_a_pooler(query: str, is_pooled: bool | None) -> None:
    address = parse_postgres_address(PLAIN + query)
    assert (address.is_pooled, address.dsn) == (is_pooled, PLAIN)


@pytest.mark.parametrize("query", ["sslmode=require&channel_binding=require", "sslrootcert=system"])
def test_channel_binding_is_replaced_by_a_verified_certificate(query: str) -> None:
    address = parse_postgres_address(f"{PLAIN}?{query}")
    assert address.uses_system_certificates
    assert address.dsn == f"{PLAIN}?sslmode=verify-full"


@pytest.mark.parametrize(
    ("query", "seconds"), [("", CONNECT_SECONDS), ("5", 5), ("0", CONNECT_SECONDS), ("900", CONNECT_SECONDS)]
)
def test_a_connection_opens_within_the_time_of_the_address(query: str, seconds: float) -> None:
    assert parse_postgres_address(f"{PLAIN}?connect_timeout={query}").connect_seconds == seconds


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://u:p@h/db", "h:5432/db"),
        ("postgresql://u@a:1,b/db", "a:1, b:5432/db"),
        ("postgresql://u@[::1]/db", "[::1]:5432/db"),
        ("postgresql:///db?host=/tmp", "/tmp/db"),
        ("postgresql://", "localhost:5432"),
    ],
)
def test_messages_name_hosts_ports_and_database(url: str, name: str) -> None:
    assert parse_postgres_address(url).public_name == name
