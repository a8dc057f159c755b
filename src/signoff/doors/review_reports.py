"""The native API of feedback and figures of reviews: `/api/reviews/feedback`, `/api/reviews/figures`, for admins."""

from typing import Annotated, Any, get_args

from litestar import Response, Router, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream

from signoff.core.reviews.feedback import FEEDBACK_KINDS, FeedbackQuery
from signoff.core.reviews.figures import FigureDimension, FigureQuery, FigureTotals, totals_as_json
from signoff.core.times import DAY_US
from signoff.doors.dependencies import InjectedCaller, InjectedServices
from signoff.doors.http import BIGINTS, INTS, parse_choice, parse_choices
from signoff.doors.usage import DEFAULT_DAYS, as_csv, format_hour, parse_microseconds
from signoff.work.reviews.feedback import export_end, export_feedback
from signoff.work.reviews.receipts import review_figures

MAX_PAGE = 10_000
JSON_LINES = "application/x-ndjson"


def parse_feedback_query(  # noqa: PLR0913 -- Litestar passes each query parameter by its name
    *,
    kind: FromQuery[str] = "decisions",
    after: Annotated[int, QueryParameter(ge=0, lt=INTS)] = 0,
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    target: FromQuery[str | None] = None,
    prompt: FromQuery[str | None] = None,
    prompt_version: Annotated[int | None, QueryParameter(ge=1, lt=INTS)] = None,
    policy: FromQuery[str | None] = None,
) -> FeedbackQuery:
    """Return the query for feedback. Raises BadRequest."""
    return FeedbackQuery(
        kind=parse_choice("kind", kind, FEEDBACK_KINDS),
        after_seq=after,
        since=None if since is None else parse_microseconds("since", since),
        until=None if until is None else parse_microseconds("until", until),
        target=target,
        prompt=prompt,
        prompt_version=prompt_version,
        policy=policy,
    )


def parse_figure_query(  # noqa: PLR0913 -- Litestar passes each query parameter by its name
    services: InjectedServices,
    *,
    by: FromQuery[str] = "",
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    policy: FromQuery[str | None] = None,
    target: FromQuery[str | None] = None,
    reviewer: FromQuery[str | None] = None,
    offset: Annotated[int, QueryParameter(ge=0, lt=BIGINTS)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 1000,
) -> FigureQuery:
    """Return the query for figures; without `since`, for the last 31 days. Raises BadRequest."""
    return FigureQuery(
        by=parse_choices("by", by, get_args(FigureDimension)),
        since=services.clock() - DEFAULT_DAYS * DAY_US if since is None else parse_microseconds("since", since),
        until=None if until is None else parse_microseconds("until", until),
        policy=policy,
        target=target,
        reviewer=reviewer,
        offset=offset,
        limit=limit,
    )


@get(
    "/feedback",
    summary="Export the decisions of reviewers",
    media_type=JSON_LINES,
    dependencies={"feedback_query": Provide(parse_feedback_query, sync_to_thread=False)},
)
async def get_feedback(
    services: InjectedServices, caller: InjectedCaller, feedback_query: NamedDependency[FeedbackQuery]
) -> Stream:
    """Stream the decisions that took effect as JSON Lines, oldest first, for admins.

    `kind` is the form of the rows: `decisions` has every decision with its contents; `supervised`, `preference` and
    `rejected` have the formats of OpenAI's fine-tuning. Pass the header `x-next-after` as `after` to get what follows.
    """
    until_seq = await export_end(services, caller)
    rows = export_feedback(services, caller, feedback_query, until_seq=until_seq)
    headers = {"cache-control": "no-store", "x-next-after": str(max(until_seq, feedback_query.after_seq))}
    return Stream(rows, media_type=JSON_LINES, headers=headers)


@get(
    "/figures",
    summary="Get figures of reviews",
    dependencies={"figure_query": Provide(parse_figure_query, sync_to_thread=False)},
)
async def get_figures(
    services: InjectedServices,
    caller: InjectedCaller,
    figure_query: NamedDependency[FigureQuery],
    format: FromQuery[str] = "json",  # noqa: A002 -- the name that callers expect
) -> Response[Any]:
    """Return sums over the decisions that took effect, for admins, grouped by the dimensions in `by`.

    The dimensions are policy, target, prompt, prompt_version, reviewer, hour and day, separated by commas. `since` and
    `until` are whole hours, UTC. `next` is `offset` of the next page. With `format=csv`, the rows are CSV.
    """
    rows, total = await review_figures(services, caller, figure_query)
    data = [
        {name: _dimension_json(name, value) for name, value in row.dimensions.items()} | totals_as_json(row.totals)
        for row in rows
    ]
    next_offset = figure_query.offset + figure_query.limit if len(rows) == figure_query.limit else None
    if format.lower() == "csv":
        headers = {"content-disposition": 'attachment; filename="reviews.csv"'}
        headers |= {} if next_offset is None else {"x-next-offset": str(next_offset)}
        columns = [*figure_query.by, *totals_as_json(FigureTotals())]
        return Response(as_csv(columns, data), media_type="text/csv", headers=headers)
    return Response({"data": data, "total": totals_as_json(total), "next": next_offset})


def _dimension_json(name: str, value: str | int | None) -> str | int | None:
    return format_hour(name, value) if name in {"hour", "day"} and isinstance(value, int) else value


router = Router("/api/reviews", route_handlers=[get_feedback, get_figures], tags=["reviews"])
