"""Prices of models by name and date, and the cost of a request in whole nanodollars."""

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

import msgspec

from signoff.core.tokens import Usage

# Prices are per million tokens, as in the price lists of providers, and stored in microdollars.
MICRO = 1_000_000
NANO = 1_000_000_000
MAX_DOLLARS = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """The price of a model from a point in time on. Amounts are microdollars."""

    model: str
    """Name of the model; a name that ends in `*` stands for all with that prefix."""
    valid_from: int
    """Microseconds since 1970, UTC."""
    input: int
    """Price of a million prompt tokens."""
    output: int
    """Price of a million completion tokens."""
    cached_input: int | None = None
    """Price of a million prompt tokens that the upstream read from its own cache; None for that of other ones."""
    request: int = 0
    """Price of a request, beside its tokens."""


class Prices:
    """All prices, indexed by name and time."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_name: dict[str, list[Price]] = {}
        for price in sorted(prices, key=lambda price: price.valid_from, reverse=True):
            self._by_name.setdefault(price.model, []).append(price)
        self._prefixes = sorted((name for name in self._by_name if name.endswith("*")), key=len, reverse=True)

    def at(self, model: str, now: int) -> Price | None:
        """Return the price of `model` at `now`, in microseconds since 1970; None if there is none.

        The price of the exact name wins over that of the longest prefix.
        """
        names = [model, *(name for name in self._prefixes if model.startswith(name[:-1]))]
        prices = (price for name in names for price in self._by_name.get(name, ()) if price.valid_from <= now)
        return next(prices, None)


def cost_of(price: Price, usage: Usage) -> int:
    """Return the cost of `usage` at `price` in nanodollars, rounded to the nearest one."""
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    cached_price = price.input if price.cached_input is None else price.cached_input
    tokens = (
        (usage.prompt_tokens - cached) * price.input + cached * cached_price + usage.completion_tokens * price.output
    )
    return (tokens + 500) // 1000 + price.request * 1000


def microdollars(text: str) -> int:
    """Parse `text`, a decimal number of dollars, and return microdollars. Raises ValueError, with a remedy."""
    try:
        dollars = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number; write a price in dollars, such as 0.25.") from None
    if not dollars.is_finite() or not 0 <= dollars <= MAX_DOLLARS or dollars * MICRO % 1:
        raise ValueError(f"A price must be 0 to {MAX_DOLLARS} dollars with at most six decimal places (got {text}).")
    return int(dollars * MICRO)


def nanodollars(text: str) -> int:
    """Parse `text`, a decimal number of dollars, and return nanodollars. Raises ValueError, with a remedy."""
    return microdollars(text) * (NANO // MICRO)


def dollars(amount: int, unit: int = MICRO) -> str:
    """Format `amount` as a decimal number of dollars; a dollar has `unit` of them."""
    text = format(Decimal(amount) / unit, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
