"""All settings, with their defaults and effects; a setting `name` is the environment variable `SIGNOFF_NAME`.

Precedence: flag, `SIGNOFF_*`, the names that other systems use, `.env`, the TOML file, default.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from signoff.core.access import Role
from signoff.core.choices import in_lower_case
from signoff.core.decode import TEXT_ENCODING
from signoff.core.headers import DEFAULT_HEADERS, header_names_fault
from signoff.core.postgres_address import parse_postgres_address
from signoff.core.reviews.policy import Review
from signoff.core.signing import Secret, secrets_in
from signoff.core.stream import Stream
from signoff.infra.logging import Format, Level
from signoff.setting_sources import (
    MAX_NAME_LENGTH,
    BadSettings,
    described,
    encoding_fault,
    is_valid_url,
    public_value,
    read_aliases,
    read_file,
    unknown_variables,
)
from signoff.setting_tables import StreamSettings

CacheKind = Literal["sql", "redis", "memory", "none"]


class Settings(BaseSettings):
    """Settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix="SIGNOFF_",
        env_file=".env",
        env_file_encoding=TEXT_ENCODING,
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        allow_inf_nan=False,
    )

    data_dir: Path = Path("data")
    """Directory of the SQLite file, the encryption key, the contents of files, and sockets of processes and models."""
    database_url: str | None = None
    """URL of the database, postgresql://… or sqlite:///…; none: a SQLite file in data_dir."""
    blob_url: str | None = Field(None, pattern="^(s3|gs|az|file)://.")
    """Store of the contents of files: s3://BUCKET/PREFIX, gs://…, az://… or file:///PATH; none: blobs in data_dir."""
    amqp_url: str | None = Field(None, pattern="^amqps?://.")
    """URL of a RabbitMQ that wakes workers, amqp://user:password@host/; none: the database wakes them."""
    queue_name: str = Field("signoff", min_length=1, max_length=MAX_NAME_LENGTH)
    """Queue in RabbitMQ, for this deployment alone."""
    queues: dict[str, str] = {}
    """Models of the queues that requests to /generate and /chat_completion name in `queue_name`; a JSON object."""
    redis_url: str | None = Field(None, pattern="^(rediss?|unix)://.")
    """URL of a Redis for results and the cache `redis`, redis://user:password@host/0; none: no Redis."""
    redis_prefix: str = Field("signoff", min_length=1, max_length=MAX_NAME_LENGTH)
    """Prefix of keys in Redis, as in PREFIX:JOB_ID."""
    redis_ttl_seconds: int = Field(86400, gt=0)
    """Seconds for which a result stays in Redis."""
    cache: CacheKind = "sql"
    """Storage of cached answers: `sql`, `redis`, `memory` (of each process), or `none`."""
    cache_ttl_seconds: float = Field(86400, gt=0)
    """Seconds for which an answer stays in the cache."""
    cache_max_entries: int = Field(100_000, gt=0)
    """Maximum number of cached answers; the oldest go first."""
    cache_max_bytes: int = Field(256 * 1024 * 1024, gt=0)
    """Maximum bytes of cached answers; the oldest go first."""
    cache_shared: bool = False
    """If true, users share cached answers; otherwise, each user has their own."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 for any free port."""
    anonymous_role: Role | None = None
    """Role of callers without a token; none: they are refused."""
    password_sign_in: bool = True
    """If false, people sign in by `oidc_issuer` or a one-time link (`signoff user link`) alone."""
    oidc_issuer: str | None = Field(None, pattern=r"^https?://[^\s?#]+$")
    """Issuer of the OpenID Connect provider, such as https://sso.example.com/realms/main; none: no provider."""
    oidc_client_id: str | None = Field(None, min_length=1)
    """Id of this server as a client of the provider; its redirect URI there is …/signin/oidc/callback."""
    oidc_client_secret: SecretStr | None = None
    """Secret of that client; none: a public client, or the one in `oidc_client_secret_file`."""
    oidc_client_secret_file: Path | None = None
    """File with that secret."""
    oidc_name: str = Field("single sign-on", min_length=1, max_length=60)
    """Name of the provider on the sign-in page."""
    oidc_scopes: list[Annotated[str, Field(pattern=r"^[!#-\[\]-~]+$")]] = ["openid", "email", "profile"]
    """Scopes to ask for; a JSON list."""
    oidc_role_claim: str | None = Field(None, min_length=1)
    """Path of the claim that decides the role at each sign-in, such as realm_access.roles; none: admins here decide."""
    oidc_roles: dict[str, Role] = {}
    """Roles by values of that claim, the one with the most rights wins: {"signoff-admins": "admin"}; a JSON object."""
    oidc_default_role: Role | None = None
    """Role of an account whose claim has no such value, and of new users without `oidc_role_claim`; none: refused."""
    oidc_create_users: bool = True
    """If true, the first sign-in of an account creates its user; if false, an admin must have created them."""
    oidc_link_users: bool = False
    """If true, an account signs in as the user who exists with its verified e-mail address, and is bound to them."""
    oidc_email_claim: str = Field("email", min_length=1)
    """Path of the claim with the e-mail address."""
    oidc_trust_email: bool = False
    """If true, addresses count as verified without the claim `email_verified`, which Entra ID does not send."""
    allowed_hosts: list[Annotated[str, Field(pattern=r"^[^\s/:*]+$")]] = []
    """Host names, besides addresses and localhost, at which callers without a token are served; a JSON list."""
    allow_remote_commands: bool = False
    """If true, admins may register command lines over HTTP from other machines."""
    cors_origins: list[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]] = []
    """Origins (https://app.example.com, or *) whose pages may call the APIs with a token; a JSON list."""
    inner_llm_url: str | None = Field(None, validation_alias=AliasChoices("SIGNOFF_INNER_LLM_URL", "INNER_LLM_URL"))
    """Base URL of an OpenAI-compatible server, which becomes the default model `inner`."""
    max_connections: int = Field(4096, gt=0)
    """Maximum number of open connections of a process that serves; a further one gets 503 and is closed."""
    echo_faults: bool = False
    """If true, callers may ask the model `echo` to wait or to fail (`echo/hang`); for tests."""
    max_body_bytes: int = Field(20 * 1024 * 1024, gt=0)
    """Maximum bytes of a request body; a larger one gets 413."""
    max_file_bytes: int = Field(200 * 1024 * 1024, gt=0)
    """Maximum bytes of an uploaded file, and of a batch of messages; a larger one gets 413."""
    max_stored_bytes: int = Field(10 * 1024 * 1024 * 1024, gt=0)
    """Maximum bytes of all files of each user, also those of batches; above it, an upload gets 413."""
    max_run_bytes: int = Field(64 * 1024 * 1024, gt=0)
    """Maximum bytes of the requests and answers of all calls of one run of a pipeline."""
    pass_headers: list[str] = [*DEFAULT_HEADERS]
    """Headers of callers that pass on to models without `pass_headers` of their own; a JSON list."""
    coalesce: bool = False
    """If true, equal requests of a user, with temperature 0 or a seed, share one upstream call."""
    concurrency: int = Field(16, gt=0)
    """Maximum number of jobs that a worker performs at the same time."""

    worker_memory_mb: int | None = Field(None, gt=0)
    """Memory in MiB above which `signoff work` finishes its jobs and restarts itself; none: no limit."""
    max_waiting_jobs: int = Field(100_000, gt=0)
    """Maximum number of jobs of each user that have not ended; above it, a new one gets 429."""
    max_waiting_bytes: int = Field(1024 * 1024 * 1024, gt=0)
    """Maximum bytes of the jobs of each user that have not ended; above it, a new one gets 429."""
    model_share: float = Field(0.75, gt=0, le=1)
    """Maximum share of a worker's concurrency that one model may use, above 0 and up to 1."""
    user_share: float = Field(0.9, gt=0, le=1)
    """Maximum share of a worker's concurrency that the jobs of one user may use, above 0 and up to 1."""
    unready_seconds: float = Field(0, ge=0)
    """Seconds for which a stopping server still takes requests while /health/ready is 503, for load balancers."""
    drain_seconds: float = Field(20, ge=0)
    """Seconds that a stopping server or worker has to finish its requests and jobs."""

    enqueue_review: Review = "always"
    """Review of answers of /enqueue; the model's own rule wins."""
    release_after_seconds: float | None = Field(None, ge=0)
    """Seconds for which a verdict can be undone before it takes effect; none: 5 on the desk, 0 for /reviewJob."""
    allow_self_review: bool | None = None
    """If true, reviewers may decide on their own requests; none: only while nobody else may review."""
    public_url: str | None = Field(None, pattern=r"^https?://[^\s?#]+$")
    """Address of this server in messages and at `oidc_issuer`: https://signoff.example.com; none: no links."""
    smtp_url: SecretStr | None = None
    """Mail server for digests of review queues, smtp://user:password@host:587 (STARTTLS) or smtps://; none: no mail."""
    smtp_from: str = "signoff@localhost"
    """Address that digests come from."""
    review_deadline_seconds: float | None = Field(None, gt=0)
    """Seconds after which a held answer is recorded as overdue; none: no deadline."""
    hold_seconds: float = Field(280, ge=0)
    """Seconds that a caller waits for a review before it gets status 504."""
    stream_hold_seconds: float = Field(3600, ge=0)
    """Seconds that the caller of a stream, who gets comments meanwhile, waits for a review before the stream ends."""
    keep_alive_seconds: float = Field(10, gt=0)
    """Seconds between comments that keep an idle stream open."""

    secret_key: SecretStr | None = None
    """Keys that encrypt stored secrets, the newest first, separated by spaces; none: those in `secret_key_file`."""
    secret_key_file: Path | None = None
    """File with these keys, which every host needs; none: `secret.key` in `data_dir`, made at the first start."""
    webhook_secret: SecretStr | None = None
    """Secret for webhooks that have none: whsec_…, or two during a rotation, separated by a space."""
    webhook_allow: list[str] = []
    """Hosts, addresses and networks that webhooks may reach besides public ones; a JSON list."""
    webhook_waits_seconds: list[Annotated[float, Field(ge=0)]] = [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]
    """Seconds between the attempts of a delivery or a digest, which is given up after the last one; a JSON list."""

    functions_dir: Path | None = None
    """Directory of your custom_*.py with functions; none: functions in data_dir."""
    function_seconds: float = Field(30, gt=0)
    """Maximum duration of a call of a function, in seconds."""

    lease_seconds: float = Field(15, gt=0)
    """Seconds without heartbeat after which a worker loses its jobs."""
    heartbeat_seconds: float = Field(5, gt=0)
    """Seconds between the heartbeats that renew a worker's leases."""
    sweep_seconds: float = Field(2, gt=0)
    """Seconds between sweeps for lost jobs, due verdicts and old jobs."""
    now_attempts: int = Field(3, gt=0)
    """Maximum attempts while a caller waits; a model can override it."""
    later_attempts: int = Field(5, gt=0)
    """Maximum attempts of a queued job; a model can override it."""
    backoff_seconds: float = Field(0.5, ge=0)
    """Maximum seconds before the first retry; doubled each time."""
    backoff_ceiling_seconds: float = Field(30, ge=0)
    """Maximum seconds before any retry."""
    log_after_seconds: float = Field(1, gt=0)
    """Seconds after which a call that still runs is recorded."""
    retention_days: float | None = Field(None, gt=0)
    """Days until ended jobs are deleted; none: never."""
    log_before_answer: bool = False
    """If true, an answer waits for the commit of its job."""

    log_level: Level = "info"
    """Least important events that are logged: `debug`, `info`, `warning` or `error`."""
    log_format: Format = "text"
    """Form of the log's lines: `text`, or `json` with one object a line."""
    metrics_token: SecretStr | None = Field(None, min_length=16)
    """Token with which `/metrics` may be read besides those of admins; it gives no other right."""
    metrics_port: int | None = Field(None, gt=0, le=65535)
    """Port for `/metrics` without a token, or the next free one, of each process; none: no port."""
    metrics_host: str = "127.0.0.1"
    """Address of `metrics_port`."""
    otlp_endpoint: str | None = Field(None, pattern="^https?://.")
    """Base URL of an OpenTelemetry collector that gets traces, such as http://localhost:4318; none: no traces."""
    access_log: bool = False
    """If true, one line is logged for each HTTP request (`info`): method, path, status, time, and ids."""

    streams: list[StreamSettings] = []
    """Topics of a message broker for requests and answers (docs/streams.md); a JSON list."""

    @field_validator("*", mode="before")
    @classmethod
    def _lower_choices(cls, value: Any, info: ValidationInfo) -> Any:
        return in_lower_case(value, cls.model_fields[info.field_name or ""].annotation)

    @field_validator("streams")
    @classmethod
    def _check_names(cls, value: list[StreamSettings]) -> list[StreamSettings]:
        names = [stream.name for stream in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"The name {name!r} must not be used by two streams; rename one of them.")
        return value

    @field_validator("pass_headers")
    @classmethod
    def _check_headers(cls, value: list[str]) -> list[str]:
        if (fault := header_names_fault(value)) is not None:
            raise ValueError(fault)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        secrets_in("" if value is None else value.get_secret_value())
        return value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: str | None) -> str | None:
        if value is None or re.match("sqlite:///.", value):
            return value
        if "sqlite" in value.partition(":")[0]:
            raise ValueError("The URL of a SQLite database must be sqlite:///PATH.")
        parse_postgres_address(value)
        return value

    @field_validator("smtp_url")
    @classmethod
    def _check_smtp_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(r"smtps?://[^\s]", value.get_secret_value()):
            raise ValueError("The URL of the mail server must be smtp://USER:PASSWORD@HOST:PORT or smtps://….")
        return value

    @field_validator("amqp_url", "redis_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("unix:") and not is_valid_url(value):
            raise ValueError("The URL is not valid; percent-encode every special character of the password.")
        return value

    @property
    def webhook_secrets(self) -> tuple[Secret, ...]:
        """Secrets in `webhook_secret`: none, one, or two during a rotation."""
        return secrets_in("" if self.webhook_secret is None else self.webhook_secret.get_secret_value())

    def declared_streams(self, seal: Callable[[str], bytes]) -> list[Stream]:
        """Return the declared streams, with their URLs encrypted by `seal`."""
        return [stream.sealed(seal) for stream in self.streams]

    def public_values(self) -> dict[str, Any]:
        """Return all settings as JSON values, without secrets: of URLs, what could be a password is left out."""
        values = self.model_dump(mode="json")
        return {name: public_value(value) for name, value in values.items()}

    @property
    def store_url(self) -> str:
        """URL of the database."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'signoff.db').absolute()}"

    @property
    def key_path(self) -> Path:
        """Path of the file with the encryption keys."""
        return self.secret_key_file or self.data_dir / "secret.key"

    @property
    def weights_dir(self) -> Path:
        """Directory of the weights that `signoff model pull` installed."""
        return self.data_dir.absolute() / "weights"

    @property
    def anonymous_warning(self) -> str | None:
        """Warning about the role of callers without a token; None if there is no cause for one."""
        if self.anonymous_role != "admin":
            return None
        return "anonymous_role is admin: everyone who can reach this server may read and change nearly everything"

    @property
    def is_on_loopback(self) -> bool:
        """True if the server listens on a loopback address, which only this machine can reach."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_embedded(self) -> bool:
        """True if the database is a SQLite file."""
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
        """Return the sources of settings, the one with the highest precedence first."""
        sources = (env_settings, dotenv_settings)
        variables: list[Mapping[str, str | None]] = [getattr(source, "env_vars", {}) for source in sources]
        config_path = next(filter(None, (each.get("signoff_config") for each in variables)), None)
        file = InitSettingsSource(settings_cls, read_file(config_path, settings_cls.model_fields))
        env_aliases, dotenv_aliases = [InitSettingsSource(settings_cls, read_aliases(each)) for each in variables]
        return init_settings, env_settings, env_aliases, dotenv_settings, dotenv_aliases, file


def load(**flags: Any) -> Settings:
    """Return the settings of this process; a flag has precedence unless it is None. Raises BadSettings."""
    flags = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**flags)
    except ValidationError as error:
        faults = (
            described(_spelling(str(fault["loc"][0]), flags), fault["loc"][1:], fault["msg"])
            for fault in error.errors()
        )
        raise BadSettings("; ".join(faults)) from None
    except UnicodeDecodeError:
        raise BadSettings(encoding_fault(Path(".env"))) from None
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        spelling = _spelling(name[1], flags) if name else str(error)
        example = '["a", "b"]' if name is None or not _is_mapping(name[1]) else '{"name": "value"}'
        raise BadSettings(f"{spelling}: The value is not valid JSON; write it as {example}.") from None


def ignored_variables() -> list[str]:
    """Return a sentence for each variable that begins with SIGNOFF_ and is no setting."""
    return unknown_variables(_spelled_variables(), Settings.model_fields)


def _is_mapping(name: str) -> bool:
    """Return True if the values of a setting are JSON objects."""
    return get_origin(Settings.model_fields[name].annotation) is dict


def _spelling(name: str, flags: Iterable[str]) -> str:
    """Return the name of a setting as its source spells it: a flag, a variable, or a name in the TOML file."""
    field = next((field for field in Settings.model_fields if name.lower() in {field, f"signoff_{field}"}), name)
    if field in flags:
        return f"--{field}"
    variables = {f"signoff_{field}", name.lower(), "inner_llm_url" if field == "inner_llm_url" else ""}
    return next((variable for variable in _spelled_variables() if variable.lower() in variables), field)


def _spelled_variables() -> list[str]:
    """Return the names of all variables of the environment, and then of `.env`, as they are written."""
    return [*os.environ, *dotenv_values(".env", encoding=TEXT_ENCODING)]
