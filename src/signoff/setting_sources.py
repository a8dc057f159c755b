"""Sources of settings besides pydantic's own: variables of other systems and the TOML file; and misspelled names."""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from signoff.core.decode import TEXT_ENCODING

# Limit for a queue name in RabbitMQ, which takes at most 255 bytes, and for a prefix in Redis.
MAX_NAME_LENGTH = 200
PREFIX = "signoff_"
# Variables that are read elsewhere than in the settings, without the prefix.
OTHER_VARIABLES = {"config", "no_work", "worker_restarted"}
# Kubernetes sets these variables in each container if there is a Service called `signoff`.
KUBERNETES_VARIABLE = re.compile(r"signoff_(service_(host|port)(_\w+)?|port_\d+_(tcp|udp)(_\w+)?)")
# A URL whose parts are unambiguous: special characters of the user and the password are percent-encoded.
PUBLIC_URL = re.compile(r"(?P<scheme>[a-z0-9+.-]+://)(?:[^@/?#]*@)?(?P<address>[^@?#]*)(?:[?#][^@]*)?")


class BadSettings(ValueError):
    """Error for invalid settings; the message names each one and its fault."""


def read_aliases(variables: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the settings in other systems' variables for RabbitMQ and Redis; values that are not valid are ignored.

    The names of `variables` are in lower case.
    """
    amqp_url = _rabbitmq_url(variables) or re.sub("^pyamqp", "amqp", variables.get("celery_broker_url") or "")
    redis_url = _redis_url(variables) or variables.get("celery_result_backend") or ""
    values = {
        "amqp_url": amqp_url if re.match("amqps?://.", amqp_url) and is_valid_url(amqp_url) else "",
        "redis_url": redis_url if re.match("rediss?://.", redis_url) and is_valid_url(redis_url) else "",
        "queue_name": _name(variables, "queue_name"),
        "redis_prefix": _name(variables, "redis_prefix"),
        "port": _port(variables.get("api_port") or ""),
    }
    return {name: value for name, value in values.items() if value}


def read_file(config_path: str | None, names: Collection[str]) -> dict[str, Any]:
    """Return the settings in the TOML file; without `config_path`, in signoff.toml if it exists. Raises BadSettings."""
    path = Path(config_path or "signoff.toml")
    if not path.exists():
        if config_path:
            raise BadSettings(f"SIGNOFF_CONFIG names {config_path}, which does not exist.")
        return {}
    try:
        values = tomllib.loads(path.read_text(TEXT_ENCODING))
    except (OSError, ValueError) as error:
        raise BadSettings(f"{path}: {error}") from None
    for name in sorted(values.keys() - set(names)):
        raise BadSettings(f"{path}: there is no setting {name!r}{_suggestion(name, names)}")
    return values


def encoding_fault(path: Path) -> str:
    """Return a sentence about the first byte of a file that is not UTF-8."""
    try:
        path.read_text(TEXT_ENCODING)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return f"{path}: line {line} is not UTF-8 (byte 0x{error.object[error.start]:02X}). Save the file as UTF-8."
    return f"{path} was not UTF-8, and has changed. Try again."


def unknown_variables(variables: Iterable[str], names: Collection[str]) -> list[str]:
    """Return a sentence for each of `variables` that begins as the settings do, and is no setting of `names`."""
    return [
        f"{variable} is ignored: there is no such setting{_suggestion(name, names, 'SIGNOFF_')}"
        for variable in sorted(variables)
        if variable.lower().startswith(PREFIX) and not KUBERNETES_VARIABLE.fullmatch(variable.lower())
        if (name := variable.lower().removeprefix(PREFIX)) not in {*names, *OTHER_VARIABLES}
    ]


def _suggestion(name: str, names: Collection[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(name, [*names, "config"] if prefix else names, 1)
    if not nearest:
        return "."
    return f"; did you mean {prefix}{nearest[0].upper()}?" if prefix else f"; did you mean {nearest[0]!r}?"


def is_valid_url(url: str) -> bool:
    """Return True if `url` has a host, and a port that can be used if it has one."""
    try:
        return bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        return False


def _rabbitmq_url(variables: Mapping[str, str | None]) -> str:
    address = _address(variables, "rabbit_mq", "5672")
    login, password = variables.get("rabbit_mq_login") or "guest", variables.get("rabbit_mq_password") or "guest"
    return f"amqp://{quote(login, safe='')}:{quote(password, safe='')}@{address}/" if address else ""


def _redis_url(variables: Mapping[str, str | None]) -> str:
    address = _address(variables, "redis", "6379")
    return f"redis://{address}/" if address else ""


def _address(variables: Mapping[str, str | None], service: str, default_port: str) -> str:
    """Return HOST:PORT of a service, or an empty text if they are missing or not valid."""
    host, port = variables.get(f"{service}_host") or "", variables.get(f"{service}_port") or default_port
    return f"{host}:{port}" if re.fullmatch(r"[\w.-]+", host) and re.fullmatch(r"\d{1,5}", port) else ""


def _port(text: str) -> int | None:
    """Return the number of a port; None if it is not valid."""
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and 0 < int(text) < 2**16 else None


def _name(variables: Mapping[str, str | None], variable: str) -> str:
    """Return the value of a variable, or an empty text if it is missing or too long."""
    name = variables.get(variable) or ""
    return name if len(name.encode()) <= MAX_NAME_LENGTH else ""


def public_value(value: Any) -> Any:
    """Return the value of a setting; of a URL, without user, password and query.

    Only the scheme is returned if it is not clear where a password ends.
    """
    if not isinstance(value, str) or "://" not in value:
        return value
    match = PUBLIC_URL.fullmatch(value)
    return value.partition("://")[0] + "://…" if match is None else match["scheme"] + match["address"]


def described(name: str, location: Iterable[int | str], message: str) -> str:
    """Return pydantic's message about a value at a place in a setting, such as `SIGNOFF_STREAMS[0].url`."""
    place = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in location)
    return f"{name}{place}: {message.removeprefix('Value error, ')}"
