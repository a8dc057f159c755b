"""Every knob: its default, its unit, its name in the environment (`SIGNOFF_` and the name in capitals).

Precedence: flag, `SIGNOFF_*`, the names that other systems use, `.env`, the TOML file, default.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from signoff.core.access import Role
from signoff.core.policy import Review
from signoff.core.signing import Secret, secrets_in
from signoff.core.stream import Stream, public_address, stream_fault

CacheKind = Literal["sql", "redis", "memory", "none"]


class BadSettings(ValueError):
    """Settings that cannot be used; the message says which, and why."""


class StreamSettings(BaseModel):
    """A stream that the settings declare: `[[streams]]` in the file."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    name: str
    url: SecretStr
    requests: str
    responses: str
    max_handlers: int = 16
    backoff_max_seconds: float = 30
    user: str | None = Field(None, alias="as")

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        flaw = stream_fault(self.sealed(str.encode))
        if flaw is not None:
            raise ValueError(flaw)
        return self

    def sealed(self, seal: Callable[[str], bytes]) -> Stream:
        """The stream, with its address sealed."""
        scheme, host = public_address(self.url.get_secret_value())
        told = self.model_dump(exclude={"url"})
        return Stream(scheme=scheme, host=host, sealed=seal(self.url.get_secret_value()), **told)


class Settings(BaseSettings):
    """The settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix="SIGNOFF_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        allow_inf_nan=False,
    )

    data_dir: Path = Field(Path("data"), description="The SQLite file, the secret key, and where processes meet.")
    database_url: str | None = Field(
        None,
        description="postgresql://… or sqlite:///…; none: SQLite in data_dir.",
        pattern="^(postgresql://|sqlite:///).",
    )
    amqp_url: str | None = Field(
        None,
        description="amqp://user:password@host/ of a RabbitMQ that wakes workers; none: the store's news does.",
        pattern="^amqps?://.",
    )
    queue_name: str = Field(
        "signoff", description="The queue in RabbitMQ, for Signoff alone.", min_length=1, max_length=200
    )
    redis_url: str | None = Field(
        None,
        description="redis://user:password@host:6379/0 of a Redis for results and the cache `redis`; none: nowhere.",
        pattern="^(rediss?|unix)://.",
    )
    redis_prefix: str = Field(
        "signoff", description="Keys in Redis begin with it: PREFIX:JOB_ID.", min_length=1, max_length=200
    )
    redis_ttl_seconds: int = Field(86400, description="How long a result can be read in Redis.", gt=0)
    cache: CacheKind = Field(
        "sql",
        description="Where answers are kept to be given again: `sql`, `redis`, `memory` (of each process), `none`.",
    )
    cache_ttl_seconds: float = Field(86400, description="How long an answer is kept to be given again.", gt=0)
    cache_max_entries: int = Field(100_000, description="How many answers are kept; the oldest goes first.", gt=0)
    cache_max_bytes: int = Field(256 * 1024 * 1024, description="How many bytes of answers are kept.", gt=0)
    cache_shared: bool = Field(
        default=False, description="Whether all users get each other's answers from the cache; else each their own."
    )
    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(8000, description="The port to listen on.", ge=0, le=65535)
    anonymous_role: Role | None = Field(None, description="What callers without a token may do; none: nothing.")
    allow_remote_commands: bool = Field(
        default=False,
        description="Whether an admin may name a program to run over HTTP where the server is not on loopback alone.",
    )
    cors_origins: list[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]] = Field(
        [], description="Origins (https://app.example.com, or *) whose pages may ask here with a token; a JSON list."
    )
    inner_llm_url: str | None = Field(
        None,
        description="Registers this OpenAI-compatible address as the model `inner`, and makes it the default.",
        validation_alias=AliasChoices("SIGNOFF_INNER_LLM_URL", "INNER_LLM_URL"),
    )
    max_body_bytes: int = Field(20 * 1024 * 1024, description="The largest request body.", gt=0)
    coalesce: bool = Field(
        default=False,
        description="Whether equal calls of one user, with a temperature of 0 or a seed, share one upstream call.",
    )
    concurrency: int = Field(16, description="Jobs that one worker performs at a time.", gt=0)

    worker_memory_mb: int | None = Field(
        None,
        description="`signoff work` starts itself anew when it takes more memory than this, in MiB; none: never.",
        gt=0,
    )
    model_share: float = Field(
        0.75,
        description="How much of what one worker performs at a time may be asked of one model; 1: all of it.",
        gt=0,
        le=1,
    )
    drain_seconds: float = Field(20, description="How long a stopping worker finishes what it began.", ge=0)

    enqueue_review: Review = Field("always", description="Whether jobs of /enqueue are held for a person.")
    undo_seconds: float = Field(0, description="How long a verdict can be undone.", ge=0)
    review_deadline_seconds: float | None = Field(None, description="How long a person may take; none: for ever.", gt=0)
    hold_seconds: float = Field(540, description="How long a waiting caller waits for a person.", ge=0)
    keep_alive_seconds: float = Field(10, description="How often a waiting stream gets a comment.", gt=0)

    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs webhooks that bring no secret of their own: whsec_…, or two with a blank between them.",
    )
    webhook_allow: list[str] = Field(
        [], description="Hosts, addresses and networks that webhooks may reach beside public ones; a JSON list."
    )
    webhook_waits_seconds: list[Annotated[float, Field(ge=0)]] = Field(
        [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400],
        description="The waits between the attempts of a webhook; a JSON list. After the last one it is given up.",
    )

    functions_dir: Path | None = Field(
        None, description="Where custom_*.py with functions of yours stand; none: functions in data_dir."
    )
    function_seconds: float = Field(30, description="How long a function of a pipeline may take.", gt=0)

    lease_seconds: float = Field(15, description="How long a worker may be silent.", gt=0)
    heartbeat_seconds: float = Field(5, description="How often a worker says that it lives.", gt=0)
    sweep_seconds: float = Field(2, description="How often lost leases and due verdicts are looked for.", gt=0)
    now_attempts: int = Field(3, description="Attempts while a caller waits.", gt=0)
    later_attempts: int = Field(5, description="Attempts of a job that was accepted for later.", gt=0)
    backoff_seconds: float = Field(0.5, description="The first wait before a retry.", ge=0)
    backoff_ceiling_seconds: float = Field(30, description="The longest wait before a retry.", ge=0)
    log_after_seconds: float = Field(1, description="When the row of a slow call is written.", gt=0)
    retention_days: float | None = Field(None, description="How long ended jobs are kept; none: for ever.", gt=0)
    log_before_answer: bool = Field(default=False, description="Whether an answer waits until its row is committed.")

    streams: list[StreamSettings] = Field(
        [], description="Topics that messages come from and answers go to: docs/streams.md; a JSON list."
    )

    @field_validator("streams")
    @classmethod
    def _have_names_of_their_own(cls, value: list[StreamSettings]) -> list[StreamSettings]:
        names = [stream.name for stream in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"There are two streams {name!r}.")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _is_secret(cls, value: SecretStr | None) -> SecretStr | None:
        secrets_in("" if value is None else value.get_secret_value())
        return value

    @field_validator("amqp_url", "redis_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("unix:") and not _can_be_read(value):
            raise ValueError("It cannot be read; is every special character of the password percent-encoded?")
        return value

    @property
    def webhook_secrets(self) -> tuple[Secret, ...]:
        """The deployment's own; two while one replaces the other."""
        return secrets_in("" if self.webhook_secret is None else self.webhook_secret.get_secret_value())

    def declared_streams(self, seal: Callable[[str], bytes]) -> list[Stream]:
        """The streams of the settings, with their addresses sealed."""
        return [stream.sealed(seal) for stream in self.streams]

    @property
    def store_url(self) -> str:
        """Where the data is kept."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'signoff.db').absolute()}"

    @property
    def key_path(self) -> Path:
        """Where the key of the vault is."""
        return self.data_dir / "secret.key"

    @property
    def is_on_loopback(self) -> bool:
        """Whether the server listens where only this machine can reach it."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_embedded(self) -> bool:
        """Whether the data is in a SQLite file."""
        return self.store_url.startswith("sqlite")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Puts the TOML file last."""
        file = InitSettingsSource(settings_cls, _from_file(settings_cls, _file_named_in(env_settings, dotenv_settings)))
        theirs = [InitSettingsSource(settings_cls, _from_others(source)) for source in (env_settings, dotenv_settings)]
        return init_settings, env_settings, theirs[0], dotenv_settings, theirs[1], file


def load(**flags: Any) -> Settings:
    """The settings of this process; `flags` win, None means not given. Raises BadSettings."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problems = (f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
        raise BadSettings("; ".join(problems)) from None
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        raise BadSettings(f"{name[1] if name else error}: It is no JSON.") from None


def _file_named_in(*sources: PydanticBaseSettingsSource) -> str | None:
    """What SIGNOFF_CONFIG says, in the first source where it says something."""
    told = (source.env_vars.get("signoff_config") for source in sources if isinstance(source, EnvSettingsSource))
    return next(filter(None, told), None)


def _from_others(source: PydanticBaseSettingsSource) -> dict[str, Any]:
    """What other systems' names for RabbitMQ and Redis say in `source`. What cannot be used there says nothing."""
    told: Mapping[str, str | None] = source.env_vars if isinstance(source, EnvSettingsSource) else {}
    amqp = _rabbitmq_of(told) or re.sub("^pyamqp", "amqp", told.get("celery_broker_url") or "")
    redis = _redis_of(told) or told.get("celery_result_backend") or ""
    found = {
        "amqp_url": amqp if re.match("amqps?://.", amqp) and _can_be_read(amqp) else "",
        "redis_url": redis if re.match("rediss?://.", redis) and _can_be_read(redis) else "",
        "queue_name": _name_of(told, "queue_name"),
        "redis_prefix": _name_of(told, "redis_prefix"),
    }
    return {name: value for name, value in found.items() if value}


def _rabbitmq_of(told: Mapping[str, str | None]) -> str:
    place = _place_of(told, "rabbit_mq", "5672")
    login, password = told.get("rabbit_mq_login") or "guest", told.get("rabbit_mq_password") or "guest"
    return f"amqp://{quote(login, safe='')}:{quote(password, safe='')}@{place}/" if place else ""


def _redis_of(told: Mapping[str, str | None]) -> str:
    place = _place_of(told, "redis", "6379")
    return f"redis://{place}/" if place else ""


def _place_of(told: Mapping[str, str | None], service: str, usual_port: str) -> str:
    host, port = told.get(f"{service}_host") or "", told.get(f"{service}_port") or usual_port
    return f"{host}:{port}" if re.fullmatch(r"[\w.-]+", host) and re.fullmatch(r"\d{1,5}", port) else ""


def _name_of(told: Mapping[str, str | None], variable: str) -> str:
    name = told.get(variable) or ""
    return name if len(name.encode()) <= 200 else ""


def _can_be_read(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        return False


def _from_file(settings_cls: type[BaseSettings], named: str | None) -> dict[str, Any]:
    path = Path(named or "signoff.toml")
    if not path.exists():
        if named:
            raise BadSettings(f"SIGNOFF_CONFIG names {named}, which does not exist.")
        return {}
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadSettings(f"{path}: {error}") from None
    for name in sorted(values.keys() - settings_cls.model_fields.keys()):
        near = difflib.get_close_matches(name, settings_cls.model_fields, 1)
        raise BadSettings(f"{path}: there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
    return values
