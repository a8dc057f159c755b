"""The door to usage, cost and prices: `/api/usage`, `/api/prices`."""

from __future__ import annotations

import csv
import io
from datetime import datetime
from typing import Annotated, Any, get_args

import msgspec
from litestar import Request, Response, Router, delete, get, put
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, QueryParameter

from signoff.core.price import NANO, Price, dollars, microdollars
from signoff.core.usage import DAY_US, Dimension, UsageQuery, UsageRow, UsageTotals
from signoff.core.wire import format_time, parse_time
from signoff.doors.http import BIGINTS, InjectedCaller, InjectedServices
from signoff.errors import BadRequest
from signoff.work.admin.usage import drop_price, list_prices, set_price, usage_report

MAX_PAGE = 10_000
ASKED_DAYS = 31
# Cells that begin so are formulas to spreadsheets (OWASP, "CSV Injection").
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


class NewPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dollars, as decimal text, for a million tokens; `request` for one. `valid_from` None: from now on."""

    model: str
    input: str
    output: str
    cached_input: str | None = None
    request: str = "0"
    valid_from: str | None = None


def usage_query(  # noqa: PLR0913 -- each is a side of a question
    services: InjectedServices,
    *,
    by: FromQuery[str] = "",
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    offset: Annotated[int, QueryParameter(ge=0, lt=BIGINTS)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 1000,
) -> UsageQuery:
    """What is asked of the ledger; of the last 31 days where nobody says since when. Raises BadRequest."""
    return UsageQuery(
        by=_dimensions(by),
        since=services.clock() - ASKED_DAYS * DAY_US if since is None else _microseconds(since),
        until=None if until is None else _microseconds(until),
        model=model,
        offset=offset,
        limit=limit,
    )


@get(
    "/usage",
    summary="What was used, and what it cost",
    dependencies={"asked": Provide(usage_query, sync_to_thread=False)},
)
async def used(
    request: Request[Any, Any, Any],
    services: InjectedServices,
    caller: InjectedCaller,
    asked: NamedDependency[UsageQuery],
    format: FromQuery[str] = "json",  # noqa: A002 -- the name that callers expect
) -> Response[Any]:
    """Sums by model, target, prompt, prompt_version, user, token, door, status, cache, hour or day, several with commas
    between them; as JSON, or CSV with `format=csv` or `Accept: text/csv`. `since` and `until` are whole hours, UTC.
    """
    lines, total = await usage_report(services, caller, asked)
    following = asked.offset + asked.limit if len(lines) == asked.limit else None
    if format == "csv" or "text/csv" in request.headers.get("accept", ""):
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        headers |= {} if following is None else {"x-next-offset": str(following)}
        return Response(_as_csv(asked, lines), media_type="text/csv", headers=headers)
    data = [_of(line) | _as_sum(line.totals) for line in lines]
    return Response({"data": data, "total": _as_sum(total), "next": following})


@get("/prices", summary="What models cost")
async def prices(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Every price, by model and time."""
    return {"data": [_as_price(price) for price in await list_prices(services)]}


@put("/prices", summary="Set a price")
async def priced(request: Request[Any, Any, Any], services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """The price. What has ended keeps its cost."""
    price = _price(await request.body(), services.clock())
    await set_price(services, caller, price)
    return _as_price(price)


@delete("/prices", status_code=204, summary="Take a price away")
async def unpriced(
    services: InjectedServices, caller: InjectedCaller, model: FromQuery[str], valid_from: FromQuery[str]
) -> None:
    """What has ended keeps its cost."""
    await drop_price(services, caller, model, _microseconds(valid_from))


def _dimensions(text: str) -> tuple[Dimension, ...]:
    names = dict.fromkeys(filter(None, text.split(",")))
    try:
        return msgspec.convert(tuple(names), tuple[Dimension, ...])
    except msgspec.ValidationError:
        raise BadRequest(f"by takes {', '.join(get_args(Dimension))}, with commas between them.") from None


def _microseconds(text: str) -> int:
    """The time that `text` says (ISO 8601): UTC unless it says another zone."""
    try:
        return parse_time(datetime.fromisoformat(text))
    except ValueError:
        raise BadRequest(f"{text!r} is not a time such as 2026-01-31 or 2026-01-31T12:00:00Z.") from None


def _price(body: bytes, now: int) -> Price:
    try:
        new = msgspec.json.decode(body, type=NewPrice)
        return Price(
            model=new.model,
            valid_from=now if new.valid_from is None else _microseconds(new.valid_from),
            input=microdollars(new.input),
            output=microdollars(new.output),
            cached_input=None if new.cached_input is None else microdollars(new.cached_input),
            request=microdollars(new.request),
        )
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"This is not a price: {error}") from None


def _of(line: UsageRow) -> dict[str, Any]:
    return {name: _named(name, value) for name, value in line.dimensions.items()}


def _named(name: str, value: str | int | None) -> str | int | None:
    """Times as the wire has them."""
    if not isinstance(value, int) or name not in {"hour", "day"}:
        return value
    return format_time(value)[:10] if name == "day" else f"{format_time(value)[:19]}Z"


def _as_sum(total: UsageTotals) -> dict[str, Any]:
    timed = max(total.timed, 1) * 1_000_000
    return {
        "jobs": total.jobs,
        "unpriced_jobs": total.unpriced,
        "prompt_tokens": total.prompt_tokens,
        "cached_tokens": total.cached_tokens,
        "completion_tokens": total.completion_tokens,
        "cost": dollars(total.cost_nanodollars, NANO),
        "average_queued_seconds": total.queued_us / timed,
        "average_first_byte_seconds": total.ttft_us / timed,
        "average_answer_seconds": total.generation_us / timed,
    }


def _as_csv(question: UsageQuery, lines: list[UsageRow]) -> str:
    """RFC 4180, with a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*question.by, *_as_sum(UsageTotals())])
    for line in lines:
        writer.writerow([*map(_cell, _of(line).values()), *_as_sum(line.totals).values()])
    return text.getvalue()


def _cell(value: str | int | None) -> str | int | None:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def _as_price(price: Price) -> dict[str, Any]:
    return {
        "model": price.model,
        "valid_from": format_time(price.valid_from),
        "input": dollars(price.input),
        "output": dollars(price.output),
        "cached_input": None if price.cached_input is None else dollars(price.cached_input),
        "request": dollars(price.request),
    }


router = Router("/api", route_handlers=[used, prices, priced, unpriced], tags=["usage"])
