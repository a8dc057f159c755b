"""The pipelines' door, as scripts know it: `/api/pipeline/args` and `/api/pipeline/call`."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.params import FromQuery

from signoff.core.ask import Ask
from signoff.core.endpoints import PREDICT
from signoff.core.pipelines.check import parameter_names
from signoff.core.pipelines.composed import Pipeline
from signoff.doors.http import (
    InjectedCaller,
    InjectedServices,
    cache_control_of,
    decoded,
    header,
    scope_of,
    wait_seconds_of,
)
from signoff.errors import BadRequest
from signoff.work.jobs.query import require_success, wait_for_end
from signoff.work.pipelines.library import get_item
from signoff.work.submit import submit


@get("/args", summary="What a pipeline must be given")
async def args(
    services: InjectedServices,
    caller: InjectedCaller,
    pipeline_name: FromQuery[str | None] = None,
    pipeline_id: FromQuery[int | None] = None,
) -> dict[str, Any]:
    """The names of its arguments, in order of first use."""
    key = pipeline_name or (None if pipeline_id is None else str(pipeline_id))
    if key is None:
        raise BadRequest("Which one? pipeline_name= is its name.")
    return {"success": True, "response": parameter_names(await get_item(services, caller, "pipeline", key))}


class NewCall(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run: a pipeline by its name or its id, with a value for each of its arguments.

    `openaikey_id` is one of the caller's upstream keys, which its models are asked with.
    """

    pipeline_name: str | None = None
    pipeline_id: int | str | None = None
    args: dict[str, Any] = {}
    openaikey_id: int | None = None


@post("/call", status_code=200, summary="Run a pipeline and wait for its answer")
async def call(
    request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller
) -> Response[dict[str, Any]]:
    """What its outermost call gives, as a text."""
    new = decoded(await request.body(), NewCall, "This is no call")
    key = new.pipeline_name or (None if new.pipeline_id is None else str(new.pipeline_id))
    if key is None:
        raise BadRequest("Which one? pipeline_name or pipeline_id says it.")
    pipeline = cast("Pipeline", await get_item(services, caller, "pipeline", key))
    scope = scope_of(request)
    ask = Ask(
        door="pipelines",
        caller=caller,
        path=PREDICT,
        body=msgspec.json.encode(new.args),
        target=pipeline.name,
        pipeline=pipeline,
        idempotency_key=header(scope, b"idempotency-key"),
        key_id=new.openaikey_id,
        cache_control=cache_control_of(scope),
    )
    job = await submit(services, ask)
    done = require_success(await wait_for_end(services, caller, job.id, wait_seconds_of(scope)))
    told = {"success": True, "response": msgspec.Raw(done.response or b"null")}
    return Response(told, headers={"x-signoff-job": job.id})


router = Router("/api/pipeline", route_handlers=[args, call], tags=["pipelines"])
