"""Health checks of `signoff doctor`: each resource that the server needs, and its state."""

import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec

from signoff.core.model import Model
from signoff.errors import NoDefaultModel
from signoff.server.bootstrap import (
    check_broker,
    check_data_dir,
    check_files,
    check_provider,
    check_redis,
    open_services,
)
from signoff.settings import Settings, ignored_variables
from signoff.work.admin.registry import default_model


class CheckResult(msgspec.Struct, frozen=True):
    """Result of a check."""

    name: str
    """Name of the resource."""
    is_ok: bool
    """True if the server can use the resource."""
    detail: str
    """Description of the resource, or of the fault."""
    is_warning: bool = False
    """True if the server can use the resource, and the operator should still change something."""


async def run_checks(settings: Settings) -> list[CheckResult]:
    """Make all checks, and return their results; a check that fails does not raise."""
    return [
        CheckResult("Python", is_ok=True, detail=sys.version.split()[0]),
        await _run_check("data folder", lambda: _data_folder(settings)),
        *await _database(settings),
        await _run_check("broker", lambda: check_broker(settings)),
        await _run_check("Redis", lambda: check_redis(settings)),
        await _run_check("files", lambda: check_files(settings)),
        await _run_check("sign-in provider", lambda: check_provider(settings)),
        *_provider_warnings(settings),
        _anonymous_callers(settings),
        *_variables(),
    ]


async def _run_check(name: str, check: Callable[[], Awaitable[str]]) -> CheckResult:
    try:
        return CheckResult(name, is_ok=True, detail=await check())
    except Exception as error:  # noqa: BLE001 -- every fault is a result
        return CheckResult(name, is_ok=False, detail=str(error) or repr(error))


async def _data_folder(settings: Settings) -> str:
    check_data_dir(settings)
    return str(settings.data_dir.absolute())


async def _database(settings: Settings) -> list[CheckResult]:
    """Return the state of the database, and the default model in it if it responds."""
    try:
        async with open_services(settings) as services:
            users = await services.store.people.users()
            models = await services.caches.models.all()
            default = await default_model(services)
    except Exception as error:  # noqa: BLE001 -- every fault is a result
        return [CheckResult("database", is_ok=False, detail=str(error) or repr(error))]
    detail = f"responds; users: {len(users)}; models: {', '.join(model.name for model in models)}"
    return [CheckResult("database", is_ok=True, detail=detail), _default(default)]


def _default(model: Model | None) -> CheckResult:
    if model is None:
        return CheckResult("default model", is_ok=True, detail=NoDefaultModel().message, is_warning=True)
    return CheckResult("default model", is_ok=True, detail=model.name)


def _anonymous_callers(settings: Settings) -> CheckResult:
    warning = settings.anonymous_warning
    role = settings.anonymous_role or "refused"
    return CheckResult("callers without a token", is_ok=True, detail=warning or role, is_warning=warning is not None)


def _provider_warnings(settings: Settings) -> list[CheckResult]:
    """Return a warning for each choice about the OpenID Connect provider that is unsafe, or lets nobody in."""
    texts = list[str]()
    if settings.oidc_issuer is not None:
        address = urlsplit(settings.oidc_issuer)
        if address.scheme == "http" and address.hostname not in {"localhost", "127.0.0.1", "::1"}:
            texts.append("oidc_issuer is not https: whoever is on the way can sign in as anybody")
        if settings.oidc_trust_email and settings.oidc_link_users:
            texts.append("oidc_trust_email and oidc_link_users: whoever sets an address at the provider gets its user")
        if not settings.oidc_create_users and not settings.oidc_link_users:
            texts.append("oidc_create_users and oidc_link_users are false: only accounts of `signoff user bind` enter")
    return [CheckResult("sign-in provider", is_ok=True, detail=text, is_warning=True) for text in texts]


def _variables() -> list[CheckResult]:
    """Return a warning for each variable that is misspelt."""
    return [CheckResult("environment", is_ok=True, detail=text, is_warning=True) for text in ignored_variables()]
