"""The native API of usage, cost and prices: `/api/usage`, `/api/prices`."""

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, get_args

import msgspec
from litestar import Response, Router, delete, get, put
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, QueryParameter

from signoff.core.latency import Histogram, LatencyDimension, LatencyQuery, LatencyRow
from signoff.core.price import NANO, Price, dollars, microdollars
from signoff.core.times import DAY_US
from signoff.core.usage import Dimension, UsageQuery, UsageRow, UsageTotals
from signoff.core.wire import format_time, parse_time
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import BIGINTS, parse_choice, parse_choices, parse_json
from signoff.errors import BadRequest
from signoff.work.admin.usage import drop_price, latency_report, list_prices, set_price, usage_report

MAX_PAGE = 10_000
DEFAULT_DAYS = 31
# Spreadsheets run cells with these prefixes as formulas (OWASP, "CSV Injection").
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")


class NewPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `PUT /api/prices`; prices are dollars, as decimal text."""

    model: str
    """Name of the model; it may end in `*`."""
    input: str
    """Price of a million prompt tokens."""
    output: str
    """Price of a million completion tokens."""
    cached_input: str | None = None
    """Price of a million prompt tokens from the upstream's cache; None for the price of other prompt tokens."""
    request: str = "0"
    """Price of one request."""
    valid_from: str | None = None
    """Time from which the price is valid (ISO 8601); None for now."""


def parse_usage_query(  # noqa: PLR0913 -- Litestar passes each query parameter by its name
    services: InjectedServices,
    *,
    by: FromQuery[str] = "",
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    offset: Annotated[int, QueryParameter(ge=0, lt=BIGINTS)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 1000,
) -> UsageQuery:
    """Return the query for usage; without `since`, for the last 31 days. Raises BadRequest."""
    return UsageQuery(
        by=parse_choices("by", by, get_args(Dimension)),
        since=services.clock() - DEFAULT_DAYS * DAY_US if since is None else parse_microseconds("since", since),
        until=None if until is None else parse_microseconds("until", until),
        model=model,
        offset=offset,
        limit=limit,
    )


@get(
    "/usage",
    summary="Get usage and cost",
    dependencies={"usage_query": Provide(parse_usage_query, sync_to_thread=False)},
)
async def get_usage(
    request: AnyRequest,
    services: InjectedServices,
    caller: InjectedCaller,
    usage_query: NamedDependency[UsageQuery],
    format: FromQuery[str] = "json",  # noqa: A002 -- the name that callers expect
) -> Response[Any]:
    """Return sums of usage, grouped by the dimensions in `by`, which are separated by commas.

    The dimensions are model, target, prompt, prompt_version, user, token, door, status, cache, hour and day. The sums
    are JSON, or CSV with `format=csv` or `Accept: text/csv`. `since` and `until` are whole hours, UTC.
    """
    rows, totals = await usage_report(services, caller, usage_query)
    next_offset = usage_query.offset + usage_query.limit if len(rows) == usage_query.limit else None
    if format.lower() == "csv" or "text/csv" in request.headers.get("accept", ""):
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        headers |= {} if next_offset is None else {"x-next-offset": str(next_offset)}
        return Response(_csv(usage_query, rows), media_type="text/csv", headers=headers)
    data = [_dimensions_json(row) | _totals_json(row.totals) for row in rows]
    return Response({"data": data, "total": _totals_json(totals), "next": next_offset})


@get("/usage/latencies", summary="Get latencies")
async def get_latencies(
    services: InjectedServices,
    caller: InjectedCaller,
    *,
    by: FromQuery[str] = "model",
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    format: FromQuery[str] = "json",  # noqa: A002 -- the name that callers expect
) -> Response[Any]:
    """Return p50, p95 and p99 of the time to the first byte and to the end of the answer, by model, hour or day.

    Counted are requests that went to a model and have ended. A percentile is within 6.25 % of the exact one. The rows
    are JSON, or CSV with `format=csv`. `since` and `until` are whole hours, UTC.
    """
    dimension: LatencyDimension = parse_choice("by", by, get_args(LatencyDimension))
    query = LatencyQuery(
        by=dimension,
        since=services.clock() - DEFAULT_DAYS * DAY_US if since is None else parse_microseconds("since", since),
        until=None if until is None else parse_microseconds("until", until),
    )
    rows = [_latency_json(dimension, row) for row in await latency_report(services, caller, query)]
    if format.lower() == "csv":
        headers = {"content-disposition": 'attachment; filename="latencies.csv"'}
        columns = _latency_json(dimension, LatencyRow(group="", whole=Histogram({}), first=Histogram({})))
        return Response(as_csv(list(columns), rows), media_type="text/csv", headers=headers)
    return Response({"data": rows})


@get("/prices", summary="List prices")
async def get_prices(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return all prices, by model and time."""
    return {"data": [_price_json(price) for price in await list_prices(services)]}


@put("/prices", summary="Set a price")
async def put_price(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Set a price, and return it. Jobs that have ended keep their cost."""
    price = parse_price(parse_json(await request.body(), NewPrice, "price"), services.clock())
    await set_price(services, caller, price)
    return _price_json(price)


@delete("/prices", status_code=204, summary="Remove a price")
async def delete_price(
    services: InjectedServices, caller: InjectedCaller, model: FromQuery[str], valid_from: FromQuery[str]
) -> None:
    """Remove a price. Jobs that have ended keep their cost."""
    await drop_price(services, caller, model, parse_microseconds("valid_from", valid_from))


def parse_microseconds(name: str, text: str) -> int:
    """Return the time in `text` (ISO 8601, UTC unless it has a zone) as microseconds since 1970.

    Raises BadRequest, whose message has the `name` of the parameter.
    """
    try:
        return parse_time(datetime.fromisoformat(text))
    except ValueError:
        raise BadRequest(
            f"`{name}` must be a time such as 2026-01-31 or 2026-01-31T12:00:00Z (got {text[:100]!r})."
        ) from None


def parse_price(new: NewPrice, now: int) -> Price:
    """Return the price in a body or a form. Raises BadRequest."""
    try:
        return Price(
            model=new.model,
            valid_from=now if new.valid_from is None else parse_microseconds("valid_from", new.valid_from),
            input=microdollars(new.input),
            output=microdollars(new.output),
            cached_input=None if new.cached_input is None else microdollars(new.cached_input),
            request=microdollars(new.request),
        )
    except ValueError as error:
        raise BadRequest(f"The price is not valid: {error}") from None


def _dimensions_json(row: UsageRow) -> dict[str, Any]:
    return {name: _dimension_json(name, value) for name, value in row.dimensions.items()}


def _dimension_json(name: str, value: str | int | None) -> str | int | None:
    """Return a value for a response; hours and days become texts."""
    return format_hour(name, value) if name in {"hour", "day"} and isinstance(value, int) else value


def _totals_json(totals: UsageTotals) -> dict[str, Any]:
    timed = max(totals.timed, 1) * 1_000_000
    return {
        "jobs": totals.jobs,
        "unpriced_jobs": totals.unpriced,
        "prompt_tokens": totals.prompt_tokens,
        "cached_tokens": totals.cached_tokens,
        "completion_tokens": totals.completion_tokens,
        "cost": dollars(totals.cost_nanodollars, NANO),
        "average_queued_seconds": totals.queued_us / timed,
        "average_first_byte_seconds": totals.ttft_us / timed,
        "average_answer_seconds": totals.generation_us / timed,
    }


def _csv(query: UsageQuery, rows: list[UsageRow]) -> str:
    members = [_dimensions_json(row) | _totals_json(row.totals) for row in rows]
    return as_csv([*query.by, *_totals_json(UsageTotals())], members)


def as_csv(columns: list[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV (RFC 4180) with a header, in which no spreadsheet finds a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return text.getvalue()


def _latency_json(by: str, row: LatencyRow) -> dict[str, Any]:
    group = format_hour(by, row.group) if isinstance(row.group, int) else row.group
    quantiles = {
        f"{measure}_p{share:g}_us": histogram.quantile(share / 100)
        for measure, histogram in (("first_byte", row.first), ("answer", row.whole))
        for share in (50, 95, 99)
    }
    return {by: group, "jobs": row.whole.total} | quantiles


def format_hour(name: str, at: int) -> str:
    """Return the time of a row by `hour` or by `day` as ISO 8601."""
    return format_time(at)[:10] if name == "day" else f"{format_time(at)[:19]}Z"


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_PREFIXES) else value


def _price_json(price: Price) -> dict[str, Any]:
    return {
        "model": price.model,
        "valid_from": format_time(price.valid_from),
        "input": dollars(price.input),
        "output": dollars(price.output),
        "cached_input": None if price.cached_input is None else dollars(price.cached_input),
        "request": dollars(price.request),
    }


router = Router("/api", route_handlers=[get_usage, get_latencies, get_prices, put_price, delete_price], tags=["usage"])
