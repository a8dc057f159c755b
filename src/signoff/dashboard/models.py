"""The page of models: what is registered, whether it answers, and what it did in the last day."""

import asyncio
from typing import Any

import msgspec
from litestar import MediaType, get
from litestar.response import Template

from signoff.core.access import Caller
from signoff.core.model import Model
from signoff.core.times import DAY_US
from signoff.core.usage import UsageQuery, UsageTotals
from signoff.dashboard.shell import MODELS, address_of, page, with_status
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.errors import SignoffError
from signoff.work.admin.health import endpoint_health
from signoff.work.admin.latencies import ModelLatency, recent_latencies
from signoff.work.admin.models import ModelStatus, list_models
from signoff.work.admin.usage import usage_report
from signoff.work.services import Services

CHECK_SECONDS = 2.0
EXAMPLE = """{
  "kind": "openai",
  "url": "https://api.openai.com/v1"
}"""


class ModelForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of the forms of a model."""

    name: str = ""
    """Name, in the form of a new model."""
    body: str = ""
    """JSON of what differs from the defaults."""
    expected: str = ""
    """Digest of the model when the form was shown."""
    key: str = ""
    """New API key of the upstream; empty to keep the present one."""
    question: str = ""
    """Text to try the model with."""
    action: str = ""
    """`save`, `try`, `start`, `stop` or `remove`."""


@get("/dashboard/models", include_in_schema=False, media_type=MediaType.HTML)
async def show_models(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Show every model with its health and its usage of the last day."""
    return await models_page(request, services, caller, ModelForm(body=EXAMPLE))


async def models_page(
    request: AnyRequest, services: Services, caller: Caller, form: ModelForm, error: SignoffError | None = None
) -> Template:
    """Return the page of all models, with the form of a new one and what is wrong with it."""
    models = await list_models(services, caller)
    query = UsageQuery(by=("model", "status"), since=services.clock() - DAY_US)
    rows, _ = await usage_report(services, caller, query)
    used = _by_model([(row.dimensions["model"], row.dimensions["status"], row.totals) for row in rows])
    async with asyncio.TaskGroup() as group:
        health = [group.create_task(model_check(services, each.model)) for each in models]
    latencies, examined = await recent_latencies(services, caller)
    cards = [_card(each, task.result(), used, latencies) for each, task in zip(models, health, strict=True)]
    shown = page(
        request,
        services,
        caller,
        "models.html",
        MODELS.name,
        models=cards,
        examined=examined,
        form=form,
        error=error and error.message,
        address=address_of(request),
    )
    return with_status(shown, error)


async def model_check(services: Services, model: Model) -> dict[str, Any]:
    """Return the health of the model, or that it did not answer in time."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await endpoint_health(services, model)
    except TimeoutError:
        return {"ok": False, "detail": f"no answer within {CHECK_SECONDS:g} s"}
    except SignoffError as error:
        return {"ok": False, "detail": error.message}


def _by_model(rows: list[tuple[Any, Any, UsageTotals]]) -> dict[Any, dict[str, int]]:
    used = dict[Any, dict[str, int]]()
    for model, status, totals in rows:
        entry = used.setdefault(model, {"jobs": 0, "failed": 0, "timed": 0, "first_us": 0})
        entry["jobs"] += totals.jobs
        entry["failed"] += totals.jobs if status == "fail" else 0
        entry["timed"] += totals.timed
        entry["first_us"] += totals.ttft_us
    return used


def _card(
    each: ModelStatus, health: dict[str, Any], used: dict[Any, dict[str, int]], latencies: dict[str, ModelLatency]
) -> dict[str, Any]:
    entry = used.get(each.model.name, {"jobs": 0, "failed": 0, "timed": 0, "first_us": 0})
    timed = entry["timed"]
    return {
        "model": each.model,
        "is_registered": each.is_registered,
        "process": each.state,
        "health": health,
        "latency": latencies.get(each.model.name),
        "jobs": entry["jobs"],
        "failed": entry["failed"],
        "share": f"{entry['failed'] / entry['jobs']:.1%}" if entry["jobs"] else "",
        "first_us": entry["first_us"] // timed if timed else None,
        "address": each.model.url or ", ".join(endpoint.url or "" for endpoint in each.model.endpoints),
    }
