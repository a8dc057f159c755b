"""Headers of the caller that pass on to a model: those in its `pass_headers`, or else in the setting of that name."""

from signoff.core.ask import Ask
from signoff.core.headers import restrict_headers, select_headers
from signoff.core.job import Job
from signoff.core.model import Model
from signoff.work.services import Services


def requested_headers(services: Services, ask: Ask, model: Model) -> dict[str, str] | None:
    """Return the headers of `ask` that pass on to its model, by name in lower case; None if there are none."""
    return select_headers(ask.headers, _names(services, model)) if ask.headers else None


def upstream_headers(services: Services, job: Job, model: Model) -> dict[str, str]:
    """Return the headers of `job` for `model`, which may be a fallback with a list of its own."""
    return {} if job.headers is None else restrict_headers(job.headers, _names(services, model))


def _names(services: Services, model: Model) -> tuple[str, ...]:
    return services.rules.pass_headers if model.pass_headers is None else model.pass_headers
