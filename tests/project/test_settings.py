"""The sources of settings, and the errors for invalid ones."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from signoff.commands.init import attribute_docstrings, settings_file
from signoff.setting_sources import BadSettings
from signoff.settings import Settings, ignored_variables, load

VARIABLE_PREFIXES = ("SIGNOFF_", "INNER_LLM", "RABBIT_MQ", "QUEUE_NAME", "CELERY_", "REDIS_")
EXAMPLE = Path(__file__).parents[2] / "example.env"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder, unset all environment variables of settings, and return the folder."""
    for name in [name for name in os.environ if name.upper().startswith(VARIABLE_PREFIXES)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_byte_order_mark_before_a_file_of_settings_is_ignored(place: Path) -> None:
    (place / "signoff.toml").write_text("port = 1", encoding="utf-8-sig")
    assert load().port == 1
    (place / ".env").write_text("SIGNOFF_PORT=2\nSIGNOFF_PRT=3", encoding="utf-8-sig")
    assert load().port == 2
    assert len(ignored_variables()) == 1


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"#" * 50_000 + b"\n"])
def test_a_file_of_variables_that_is_not_utf_8_is_reported_in_one_line(start: bytes, place: Path) -> None:
    (place / ".env").write_bytes(start + b"SIGNOFF_PORT=2\nSIGNOFF_DEFAULT_MODEL=caf\xe9\n")
    line = 2 + start.count(b"\n")
    with pytest.raises(BadSettings) as raised:
        load()
    assert str(raised.value) == f".env: line {line} is not UTF-8 (byte 0xE9). Save the file as UTF-8."


@pytest.mark.parametrize("value", ["https://a.example", "[", "{}"])
def test_an_invalid_list_is_reported_in_one_line(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNOFF_CORS_ORIGINS", value)
    with pytest.raises(BadSettings, match=r"^SIGNOFF_CORS_ORIGINS: [^\n]*$"):
        load()


def test_the_source_of_higher_precedence_wins(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given nothing, then one source after the other, each of higher precedence than the last
    assert load().port == 8000
    (place / "signoff.toml").write_text("port = 1")
    assert load().port == 1
    (place / ".env").write_text("SIGNOFF_PORT=2")
    assert load().port == 2
    monkeypatch.setenv("SIGNOFF_PORT", "3")
    assert load().port == 3
    assert load(port=4).port == 4
    # and a flag without a value changes nothing
    assert load(port=None).port == 3


def test_the_source_of_higher_precedence_wins_under_every_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().inner_llm_url is None
    (place / "signoff.toml").write_text('inner_llm_url = "http://file"')
    assert load().inner_llm_url == "http://file"
    (place / ".env").write_text("INNER_LLM_URL=http://theirs.in.env.file")
    assert load().inner_llm_url == "http://theirs.in.env.file"
    (place / ".env").write_text("INNER_LLM_URL=http://x\nSIGNOFF_INNER_LLM_URL=http://env.file")
    assert load().inner_llm_url == "http://env.file"
    monkeypatch.setenv("INNER_LLM_URL", "http://theirs")
    assert load().inner_llm_url == "http://theirs"
    monkeypatch.setenv("SIGNOFF_INNER_LLM_URL", "http://ours")
    assert load().inner_llm_url == "http://ours"
    assert load(inner_llm_url="http://flag").inner_llm_url == "http://flag"


def test_the_source_of_higher_precedence_wins_for_all_names_of_rabbitmq(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (load().amqp_url, load().queue_name) == (None, "signoff")
    (place / "signoff.toml").write_text('amqp_url = "amqp://file"\nqueue_name = "file"')
    assert (load().amqp_url, load().queue_name) == ("amqp://file", "file")
    (place / ".env").write_text("CELERY_BROKER_URL=amqp://theirs.in.env.file\nQUEUE_NAME=theirs.in.env.file")
    assert (load().amqp_url, load().queue_name) == ("amqp://theirs.in.env.file", "theirs.in.env.file")
    (place / ".env").write_text("CELERY_BROKER_URL=amqp://x\nSIGNOFF_AMQP_URL=amqp://env.file")
    assert load().amqp_url == "amqp://env.file"
    monkeypatch.setenv("CELERY_BROKER_URL", "pyamqp://theirs//")
    monkeypatch.setenv("QUEUE_NAME", "theirs")
    assert (load().amqp_url, load().queue_name) == ("amqp://theirs//", "theirs")
    monkeypatch.setenv("RABBIT_MQ_HOST", "rabbit")
    assert load().amqp_url == "amqp://guest:guest@rabbit:5672/"
    monkeypatch.setenv("SIGNOFF_AMQP_URL", "amqps://ours")
    monkeypatch.setenv("SIGNOFF_QUEUE_NAME", "ours")
    assert (load().amqp_url, load().queue_name) == ("amqps://ours", "ours")
    assert load(amqp_url="amqp://flag").amqp_url == "amqp://flag"


def test_the_source_of_higher_precedence_wins_for_all_names_of_redis(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (load().redis_url, load().redis_prefix) == (None, "signoff")
    (place / ".env").write_text("CELERY_RESULT_BACKEND=redis://h:6379/0\nREDIS_PREFIX=theirs.in.env.file")
    assert (load().redis_url, load().redis_prefix) == ("redis://h:6379/0", "theirs.in.env.file")
    monkeypatch.setenv("REDIS_HOST", "redis")
    assert load().redis_url == "redis://redis:6379/"
    monkeypatch.setenv("REDIS_PORT", "6380")
    monkeypatch.setenv("REDIS_PREFIX", "theirs")
    assert (load().redis_url, load().redis_prefix) == ("redis://redis:6380/", "theirs")
    monkeypatch.setenv("SIGNOFF_REDIS_URL", "rediss://:secret@ours/1")
    monkeypatch.setenv("SIGNOFF_REDIS_PREFIX", "ours")
    assert (load().redis_url, load().redis_prefix) == ("rediss://:secret@ours/1", "ours")


def test_an_address_in_parts_may_contain_any_password(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"HOST": "10.0.0.1", "PORT": "5673", "LOGIN": "an@nn", "PASSWORD": "p/w:#?%"}
    for name, value in parts.items():
        monkeypatch.setenv(f"RABBIT_MQ_{name}", value)
    assert load().amqp_url == "amqp://an%40nn:p%2Fw%3A%23%3F%25@10.0.0.1:5673/"


@pytest.mark.parametrize(
    "leftovers",
    [
        {"CELERY_BROKER_URL": "redis://h/0"},
        {"CELERY_BROKER_URL": "amqp://h:port/"},
        {"CELERY_BROKER_URL": "amqp://u:p#w@h/"},
        {"CELERY_BROKER_URL": "amqp://"},
        {"RABBIT_MQ_PORT": "5672", "RABBIT_MQ_LOGIN": "me", "RABBIT_MQ_PASSWORD": "secret"},
        {"RABBIT_MQ_HOST": "rabbit", "RABBIT_MQ_PORT": "tcp://10.0.0.1:5672"},
        {"RABBIT_MQ_HOST": "rabbit", "RABBIT_MQ_PORT": "65536"},
        {"RABBIT_MQ_HOST": "http://rabbit"},
        {"RABBIT_MQ_HOST": ""},
        {"QUEUE_NAME": "q" * 201},
        {"QUEUE_NAME": ""},
        {"CELERY_RESULT_BACKEND": "rpc://"},
        {"CELERY_RESULT_BACKEND": "redis://h:port/0"},
        {"REDIS_PORT": "6379"},
        {"REDIS_HOST": "redis", "REDIS_PORT": "tcp://10.0.0.1:6379"},
        {"REDIS_HOST": "redis", "REDIS_PORT": "65536"},
        {"REDIS_PREFIX": ""},
        {"API_PORT": "0"},
        {"API_PORT": "65536"},
        {"API_PORT": "tcp://10.0.0.1:6672"},
    ],
)
def test_unusable_variables_of_other_systems_are_ignored(
    leftovers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in leftovers.items():
        monkeypatch.setenv(name, value)
    assert (load().amqp_url, load().queue_name, load().port) == (None, "signoff", 8000)


def test_the_source_of_higher_precedence_wins_for_the_port(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "signoff.toml").write_text("port = 1")
    (place / ".env").write_text("API_PORT=6672")
    assert load().port == 6672
    (place / ".env").write_text("API_PORT=6672\nSIGNOFF_PORT=2")
    assert load().port == 2
    monkeypatch.setenv("API_PORT", "6673")
    assert load().port == 6673
    monkeypatch.setenv("SIGNOFF_PORT", "3")
    assert load().port == 3
    assert load(port=4).port == 4


def test_the_file_may_contain_every_setting(place: Path) -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items() if field.default is not None}
    (place / "signoff.toml").write_text("\n".join(f"{name} = {as_toml(value)}" for name, value in defaults.items()))
    assert load() == Settings()


def as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | int | float | list | dict) else f'"{value}"'


def test_a_file_can_be_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given two files, one of them with the usual name
    (place / "signoff.toml").write_text("port = 1")
    (place / "other.toml").write_text("port = 2")
    # then .env may name the other one, and the environment wins over .env
    (place / ".env").write_text("SIGNOFF_CONFIG=other.toml")
    assert load().port == 2
    monkeypatch.setenv("SIGNOFF_CONFIG", str(place / "signoff.toml"))
    assert load().port == 1
    monkeypatch.setenv("SIGNOFF_CONFIG", "nowhere.toml")
    with pytest.raises(BadSettings, match=r"SIGNOFF_CONFIG names nowhere\.toml, which does not exist"):
        load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "there is no setting 'prot'; did you mean 'port'?"),
        ("host = 'h'\nlease_second = 1", "did you mean 'lease_seconds'?"),
        ("SIGNOFF_PORT = 1", "there is no setting 'SIGNOFF_PORT'"),
        ("[server]\nport = 1", "there is no setting 'server'"),
        ("port = ", "signoff.toml"),
        ("port = 'many'", "port: "),
    ],
)
def test_a_file_with_an_error_is_refused_in_one_line_that_names_it(text: str, message: str, place: Path) -> None:
    (place / "signoff.toml").write_text(text)
    with pytest.raises(BadSettings, match=re.escape(message)) as caught:
        load()
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "binary.toml").write_bytes(b"\xff\xfe")
    for name in ("binary.toml", "."):
        monkeypatch.setenv("SIGNOFF_CONFIG", name)
        with pytest.raises(BadSettings, match=f"^{re.escape(name)}: "):
            load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "1.5"),
        ("LEASE_SECONDS", "0"),
        ("LEASE_SECONDS", "inf"),
        ("RELEASE_AFTER_SECONDS", "nan"),
        ("RELEASE_AFTER_SECONDS", "-1"),
        ("REVIEW_DEADLINE_SECONDS", "0"),
        ("ANONYMOUS_ROLE", "root"),
        ("ENQUEUE_REVIEW", "sometimes"),
        ("LOG_BEFORE_ANSWER", "maybe"),
        ("DATABASE_URL", "mysql://u:secret@h/d"),
        ("DATABASE_URL", "sqlite://"),
        ("AMQP_URL", "redis://u:secret@h"),
        ("AMQP_URL", "amqp://u:secret@"),
        ("AMQP_URL", "amqp://u:secret#1@h/"),
        ("AMQP_URL", "amqp://u:secret@h:port/"),
        ("QUEUE_NAME", "q" * 201),
        ("REDIS_URL", "amqp://u:secret@h"),
        ("REDIS_URL", "redis://u:secret@h:port/0"),
        ("REDIS_PREFIX", "p" * 201),
        ("REDIS_TTL_SECONDS", "0"),
    ],
)
def test_an_invalid_value_is_refused_in_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SIGNOFF_{name}", value)
    with pytest.raises(BadSettings, match=f"^SIGNOFF_{name}: [^\n]+$") as caught:
        load()
    assert "secret" not in str(caught.value)


def test_all_invalid_values_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNOFF_PORT", "http")
    monkeypatch.setenv("SIGNOFF_CONCURRENCY", "0")
    with pytest.raises(BadSettings, match=r"^SIGNOFF_PORT: .*; SIGNOFF_CONCURRENCY: "):
        load()


def test_a_fault_is_named_as_the_operator_spelled_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSettings, match=r"^--port: "):
        load(port="many")
    monkeypatch.setenv("signoff_port", "many")
    with pytest.raises(BadSettings, match=r"^signoff_port: "):
        load()
    monkeypatch.delenv("signoff_port")
    (place / ".env").write_text("SIGNOFF_Port=many")
    with pytest.raises(BadSettings, match=r"^SIGNOFF_Port: "):
        load()
    (place / ".env").write_text("")
    (place / "signoff.toml").write_text('port = "many"')
    with pytest.raises(BadSettings, match=r"^port: "):
        load()


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [
        ("SIGNOFF_PROT", "did you mean SIGNOFF_PORT?"),
        ("SIGNOFF_RETENTION_DAY", "did you mean SIGNOFF_RETENTION_DAYS?"),
        ("signoff_databaseurl", "did you mean SIGNOFF_DATABASE_URL?"),
        ("SIGNOFF_CONFG", "did you mean SIGNOFF_CONFIG?"),
        ("SIGNOFF_ZZZZ", "there is no such setting."),
    ],
)
@pytest.mark.parametrize("is_in_file", [False, True], ids=["environment", "env-file"])
def test_a_misspelt_variable_is_warned_of(
    variable: str, suggestion: str, is_in_file: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_in_file:
        (place / ".env").write_text(f"{variable}=s3cret")
    else:
        monkeypatch.setenv(variable, "s3cret")
    (warning,) = ignored_variables()
    assert warning.startswith(f"{variable} is ignored: ")
    assert warning.endswith(suggestion)
    assert "s3cret" not in warning


@pytest.mark.parametrize(
    "variable",
    ["SIGNOFF_LOG_LEVEL", "SIGNOFF_CONFIG", "SIGNOFF_NO_WORK", "SIGNOFF_SERVICE_HOST", "SIGNOFF_PORT_8000_TCP_ADDR"],
)
def test_a_variable_of_signoff_or_kubernetes_is_not_warned_of(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "")
    assert ignored_variables() == []


def test_empty_or_unknown_environment_variables_are_ignored(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / ".env").write_text("SIGNOFF_PORT=\nSIGNOFF_PROT=1\nOTHER=2")
    for name in ("SIGNOFF_PORT", "SIGNOFF_CONFIG", "SIGNOFF_ANONYMOUS_ROLE", "SIGNOFF_INNER_LLM_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SIGNOFF_NOBODY_KNOWS", "1")
    monkeypatch.setenv("INNER_LLM_URL", "http://theirs")
    assert load() == Settings(inner_llm_url="http://theirs")
    assert load().port == 8000


@pytest.mark.parametrize(
    ("url", "embedded"),
    [(None, True), ("sqlite:///x.db", True), ("sqlite:////abs/x.db", True), ("postgresql://u@h/d", False)],
)
def test_the_data_is_in_the_data_folder_unless_an_address_is_given(
    url: str | None, *, embedded: bool, place: Path
) -> None:
    settings = Settings(data_dir=Path("here"), database_url=url)
    assert settings.store_url == (url or f"sqlite:///{place}/here/signoff.db")
    assert settings.is_embedded is embedded


def test_init_lists_every_setting_with_its_meaning_and_its_default_and_changes_none(place: Path) -> None:
    text = settings_file()
    # every setting has its description above it
    entries = re.findall(r"((?:^# .*\n)+?)# (\w+) = .*\n", text.partition("\n\n")[2], re.MULTILINE)
    assert [name for _, name in entries] == list(Settings.model_fields)
    descriptions = attribute_docstrings(Settings)
    for comment, name in entries:
        assert comment.replace("\n# ", " ").removeprefix("# ").strip() == descriptions[name]
    # then the file changes nothing as it is, nor with all its values
    (place / "signoff.toml").write_text(text)
    assert load() == Settings()
    (place / "signoff.toml").write_text(re.sub(r"^# (\w+ = [^…\n]+)$", r"\1", text, flags=re.MULTILINE))
    assert load() == Settings()


def test_the_example_names_every_setting_with_its_meaning_and_its_default() -> None:
    # given the lines of example.env, each under its description
    lines = EXAMPLE.read_text().splitlines()
    shown = {line[2:].partition("=")[0]: number for number, line in enumerate(lines) if re.match(r"# [A-Z_]+=", line)}
    # then they are exactly the settings and SIGNOFF_CONFIG
    assert shown.keys() == {"SIGNOFF_CONFIG", *(f"SIGNOFF_{name.upper()}" for name in Settings.model_fields)}
    descriptions = attribute_docstrings(Settings)
    for name in Settings.model_fields:
        above = "\n".join(lines[: shown[f"SIGNOFF_{name.upper()}"]]).rpartition("\n\n")[2]
        assert descriptions[name] in above


def test_the_example_file_contains_only_defaults(place: Path) -> None:
    text = re.sub(r"^# ([A-Z_]+=)", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    assert "\nSIGNOFF_PORT=8000\n" in text
    before = load()
    (place / ".env").write_text(text)
    assert load() == before
    # and every setting that has a default is shown with a value
    for name, field in Settings.model_fields.items():
        assert (f"SIGNOFF_{name.upper()}=\n" in text + "\n") is (field.default is None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("STREAMS", '[{"name": "a"}]', "SIGNOFF_STREAMS[0].url: Field required"),
        ("QUEUES", "{", 'SIGNOFF_QUEUES: The value is not valid JSON; write it as {"name": "value"}.'),
        ("CORS_ORIGINS", "{", 'SIGNOFF_CORS_ORIGINS: The value is not valid JSON; write it as ["a", "b"].'),
    ],
)
def test_a_fault_in_a_value_of_several_parts_names_its_place(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"SIGNOFF_{name}", value)
    with pytest.raises(BadSettings, match=re.escape(message)):
        load()
