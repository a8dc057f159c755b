"""Warnings in the log of a process that starts: what the operator should change, though the process can work."""

import structlog

from signoff.dashboard.bundle import NOT_BUILT, bundle
from signoff.errors import NoDefaultModel
from signoff.settings import Settings, ignored_variables
from signoff.work.admin.registry import default_model
from signoff.work.services import Services

log = structlog.get_logger()


async def log_warnings(services: Services, settings: Settings) -> None:
    """Log each cause for a warning."""
    if (warning := settings.anonymous_warning) is not None:
        log.warning("anonymous_admin", remedy=warning)
    for warning in ignored_variables():
        log.warning("unknown_setting", remedy=warning)
    if await default_model(services) is None:
        log.warning("no_default_model", remedy=NoDefaultModel().message)


def log_page_warnings() -> None:
    """Log what the pages lack, in a process that serves them."""
    if not bundle():
        log.warning("scripts_not_built", remedy=NOT_BUILT)
