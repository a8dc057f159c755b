"""What a model costs: prices by name and date, and the cost of a call in whole nanodollars."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

import msgspec

from signoff.core.tokens import Usage

# Prices are told by the million of tokens, as everybody's price lists do, and kept in millionths of a dollar.
MICRO = 1_000_000
NANO = 1_000_000_000
MOST_DOLLARS = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs from `valid_from` on, in microdollars: a million tokens, and one request.

    `model` may end in `*`. `cached_input` is for prompt tokens that the upstream took from a cache of its own; None
    means that they cost as much as others.
    """

    model: str
    valid_from: int
    input: int
    output: int
    cached_input: int | None = None
    request: int = 0


class Prices:
    """Prices by the names and the times they hold for."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_name: dict[str, list[Price]] = {}
        for price in sorted(prices, key=lambda price: price.valid_from, reverse=True):
            self._by_name.setdefault(price.model, []).append(price)
        self._wild = sorted((name for name in self._by_name if name.endswith("*")), key=len, reverse=True)

    def at(self, model: str, now: int) -> Price | None:
        """What `model` costs at `now`, microseconds since 1970; None where nobody has said so.

        The exact name's price, else that of the longest prefix which has one by then.
        """
        names = [model, *(name for name in self._wild if model.startswith(name[:-1]))]
        told = (price for name in names for price in self._by_name.get(name, ()) if price.valid_from <= now)
        return next(told, None)


def cost_of(price: Price, usage: Usage) -> int:
    """Nanodollars, to the nearest one."""
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    cached_price = price.input if price.cached_input is None else price.cached_input
    tokens = (
        (usage.prompt_tokens - cached) * price.input + cached * cached_price + usage.completion_tokens * price.output
    )
    return (tokens + 500) // 1000 + price.request * 1000


def microdollars(text: str) -> int:
    """The microdollars that `text`, a decimal number of dollars, stands for. Raises ValueError."""
    try:
        dollars = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number of dollars.") from None
    if not dollars.is_finite() or not 0 <= dollars <= MOST_DOLLARS or dollars * MICRO % 1:
        raise ValueError(f"{text} is not a price: from 0 to {MOST_DOLLARS} dollars, with six decimal places at most.")
    return int(dollars * MICRO)


def nanodollars(text: str) -> int:
    """The same in nanodollars."""
    return microdollars(text) * (NANO // MICRO)


def dollars(amount: int, unit: int = MICRO) -> str:
    """`amount` of which a dollar has `unit`, as a decimal number of dollars."""
    text = format(Decimal(amount) / unit, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
