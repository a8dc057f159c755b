"""Charts of columns over time, drawn on the server; lengths are attributes of SVG, so pages need no inline style."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec

from signoff.core.price import NANO
from signoff.dashboard.shell import SECOND_US, format_cost, format_duration

Unit = Literal["hour", "day"]
WIDTH, BASE, TOP = 400, 150, 10
MAX_LABELS = 6


class Column(NamedTuple):
    """Bar of a chart; lengths are in units of the chart, which is WIDTH wide."""

    x: float
    width: float
    y: float
    height: float
    label: str
    """Time of the bar below the axis; empty where there is no room."""
    title: str
    """Time and value, as a person reads them."""


class Scale(NamedTuple):
    """Labels of the vertical axis, as the script writes them."""

    prefix: str = ""
    suffix: str = ""
    divisor: int = 1
    """Number by which values are divided."""


class Chart(NamedTuple):
    """Bars over time."""

    title: str
    """Heading of the chart."""
    highest: str
    """Value at the upper line."""
    columns: list[Column]
    data: str
    """JSON for the script: `times` in seconds since 1970, `labels`, `values`, `titles`, `prefix` and `suffix`."""


def column_chart(
    title: str, times: Sequence[int], values: Sequence[int], format_value: Callable[[int], str], unit: Unit
) -> Chart:
    """Return a chart with a bar for each time; `format_value` returns the text of a value."""
    highest, step = max(values, default=0) or 1, WIDTH / len(times)
    every = -(-len(times) // MAX_LABELS)
    columns = list[Column]()
    for index, (at, value) in enumerate(zip(times, values, strict=True)):
        height = (BASE - TOP) * value / highest
        label = _time(at, unit) if index % every == 0 else ""
        columns.append(
            Column(
                x=round(index * step, 1),
                width=round(max(step - 3, 1), 1),
                y=round(BASE - height, 1),
                height=round(height, 1),
                label=label,
                title=f"{_time(at, unit)}: {format_value(value)}",
            )
        )
    scale = _SCALES.get(format_value, Scale())
    data = {
        "times": [at // SECOND_US for at in times],
        "values": values if scale.divisor == 1 else [value / scale.divisor for value in values],
        "titles": [column.title for column in columns],
        "labels": [_time(at, unit) for at in times],
        "prefix": scale.prefix,
        "suffix": scale.suffix,
    }
    return Chart(title, format_value(max(values, default=0)), columns, msgspec.json.encode(data).decode())


def _time(at: int, unit: Unit) -> str:
    moment = datetime.fromtimestamp(at // SECOND_US, UTC)
    return f"{moment:%H:%M}" if unit == "hour" else f"{moment:%d %b}"


def format_number(value: int) -> str:
    """Return a number with commas."""
    return f"{value:,}"


def format_percent(value: int) -> str:
    """Return a share of which 100 is the whole."""
    return f"{value} %"


_SCALES: dict[Callable[[int], str], Scale] = {
    format_cost: Scale(prefix="$", divisor=NANO),
    format_duration: Scale(suffix=" s", divisor=SECOND_US),
    format_percent: Scale(suffix=" %"),
}
