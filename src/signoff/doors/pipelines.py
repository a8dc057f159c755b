"""The API that existing scripts use to run pipelines: `/api/pipeline/args` and `/api/pipeline/call`."""

from typing import Any, cast

import msgspec
from litestar import Response, Router, get, post
from litestar.params import FromQuery

from signoff.core.api_paths import PREDICT
from signoff.core.ask import Ask
from signoff.core.pipelines.check import parameter_names
from signoff.core.pipelines.composed import Pipeline
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices, scope_of
from signoff.doors.http import cache_control_of, header, parse_json, wait_seconds_of
from signoff.errors import MissingParameter
from signoff.work.jobs.query import require_success, wait_for_end
from signoff.work.pipelines.library import get_item
from signoff.work.submit import submit


@get("/args", summary="List the arguments of a pipeline")
async def get_args(
    services: InjectedServices,
    caller: InjectedCaller,
    pipeline_name: FromQuery[str | None] = None,
    pipeline_id: FromQuery[int | None] = None,
) -> dict[str, Any]:
    """Return the names of the pipeline's arguments, in order of first use."""
    key = pipeline_name or (None if pipeline_id is None else str(pipeline_id))
    if key is None:
        raise MissingParameter("pipeline_name", "Send it, or `pipeline_id`.")
    return {"success": True, "response": parameter_names(await get_item(services, caller, "pipeline", key))}


class NewCall(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /api/pipeline/call`; it has `pipeline_name` or `pipeline_id`."""

    pipeline_name: str | None = None
    """Name of the pipeline."""
    pipeline_id: int | str | None = None
    """Id of the pipeline."""
    args: dict[str, Any] = {}
    """Value of each argument, by name."""
    openaikey_id: int | None = None
    """Id of one of the caller's upstream keys, for the requests to models; None for the usual keys."""


@post("/call", status_code=200, summary="Run a pipeline and wait for its answer")
async def post_call(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> Response[dict[str, Any]]:
    """Run the pipeline, and return the result of its outermost call as a text."""
    new = parse_json(await request.body(), NewCall, "call")
    key = new.pipeline_name or (None if new.pipeline_id is None else str(new.pipeline_id))
    if key is None:
        raise MissingParameter("pipeline_name", "Send it, or `pipeline_id`.")
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
    ended = require_success(await wait_for_end(services, caller, job.id, wait_seconds_of(scope)))
    body = {"success": True, "response": msgspec.Raw(ended.response or b"null")}
    return Response(body, headers={"x-signoff-job": job.id})


router = Router("/api/pipeline", route_handlers=[get_args, post_call], tags=["pipelines"])
