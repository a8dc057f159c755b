"""Risk scores: log-odds that an answer is wrong, linear in its signals, as a condition of a policy can compute them."""

import math
from collections.abc import Mapping, Sequence

import msgspec

from signoff.core.reviews.expression import FIELDS, NUMBERS
from signoff.core.reviews.logistic import fit_logistic

MAX_TERMS = 8
# For each term, this many wrong answers and this many right ones are needed.
ANSWERS_PER_TERM = 5
# Values in either tail count like its inner end, so that no single answer bends the score.
TAIL_SHARE = 0.01
DIGITS = 6
# Beyond this, squares and sums would be too large or too coarse for floating point.
LARGEST = 1e12
SignalValue = float | bool | None
"""The value of a signal; None if the answer has none."""


def scorable_signals() -> dict[str, str]:
    """Return the numeric and the boolean values that conditions read, with their types, by their full names.

    >>> sorted(name for name, kind in scorable_signals().items() if kind == "bool")
    ['answer.empty', 'answer.truncated', 'signals.schema_ok']
    """
    kinds = NUMBERS | {"bool"}
    fields = {
        f"{root}.{name}": field.kind
        for root, object_ in FIELDS.items()
        for name, field in (object_.fields or {}).items()
    }
    return {name: kind for name, kind in (fields | {"cost": FIELDS["cost"].kind}).items() if kind in kinds}


class RiskTerm(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a signal in a risk score."""

    signal: str
    """Full name of the signal."""
    coefficient: float
    """Change of the score with the value; of a boolean one, what true adds."""
    lowest: float | None = None
    """Value that lower ones count like; None for a boolean signal."""
    highest: float | None = None
    """Value that higher ones count like; None for a boolean signal."""
    missing: float | None = None
    """Part of an answer without a value; None if each past answer had one, so that an answer without has no score."""


class RiskScore(msgspec.Struct, frozen=True, kw_only=True):
    """A risk score: the log-odds that an answer is wrong."""

    intercept: float
    """Score of an answer all of whose terms are 0."""
    terms: tuple[RiskTerm, ...]
    """Parts of the signals."""

    def of(self, values: Mapping[str, SignalValue]) -> float | None:
        """Return the score of an answer with these values, by name; None if a value is missing that never was."""
        parts = [_part(term, values.get(term.signal)) for term in self.terms]
        total = self.intercept
        for part in parts:
            if part is None:
                return None
            total += part
        return total


class LabelledAnswer(msgspec.Struct, frozen=True):
    """An answer with what a person decided about it."""

    values: Mapping[str, SignalValue]
    """Values of its signals, by name."""
    is_wrong: bool
    """True if it was rejected, sent back or edited."""
    weight: float = 1
    """Inverse of the probability with which a person was to look at it."""


def expression_of(score: RiskScore) -> str:
    """Return the score as an expression in CEL."""
    return " + ".join([_number(score.intercept), *(_expression(term) for term in score.terms)])


def fit_score(answers: Sequence[LabelledAnswer], signals: Sequence[str]) -> RiskScore:
    """Return the score that fits best to what people decided, from the signals that correlate most with the decisions.

    Its numbers are rounded to DIGITS digits, so that its expression is exact. Raises ValueError if no answer, or every
    one, is wrong.
    """
    wrong = sum(answer.is_wrong for answer in answers)
    number = max(1, min(MAX_TERMS, min(wrong, len(answers) - wrong) // ANSWERS_PER_TERM))
    total = sum(answer.weight for answer in answers)
    weights = [answer.weight * len(answers) / total for answer in answers]
    columns = [_Column(name, [answer.values.get(name) for answer in answers], weights) for name in signals]
    outcomes = [answer.is_wrong for answer in answers]
    telling = sorted((each for each in columns if each.varies), key=lambda each: -each.correlation(outcomes))[:number]
    variables = [variable for column in telling for variable in column.variables()]
    intercept, coefficients = fit_logistic(variables, outcomes, weights)
    terms, place = list[RiskTerm](), 0
    for column in telling:
        width = len(column.variables())
        term, constant = column.term(coefficients[place : place + width])
        terms, place, intercept = [*terms, term], place + width, intercept + constant
    return RiskScore(intercept=_rounded(intercept), terms=tuple(terms))


class _Column:
    """The values of one signal, standardised."""

    def __init__(self, name: str, values: Sequence[SignalValue], weights: Sequence[float]) -> None:
        finite = [_finite(value) for value in values]
        known = [value for value in finite if value is not None]
        self._name, self._weights = name, weights
        self._is_boolean = scorable_signals()[name] == "bool"
        self._lowest, self._highest = (0.0, 1.0) if self._is_boolean else _ends(known)
        self._missing = [value is None for value in finite]
        clamped = [None if value is None else min(max(value, self._lowest), self._highest) for value in finite]
        pairs = [(value, weight) for value, weight in zip(clamped, weights, strict=True) if value is not None]
        total = sum(weight for _, weight in pairs) or 1.0
        self._mean = sum(value * weight for value, weight in pairs) / total
        self._deviation = (sum(weight * (value - self._mean) ** 2 for value, weight in pairs) / total) ** 0.5
        scale = self._deviation or 1.0
        self._standard = [0.0 if value is None else (value - self._mean) / scale for value in clamped]

    @property
    def varies(self) -> bool:
        """True if the values differ, or some are missing and others are not."""
        return self._deviation > 0 or 0 < sum(self._missing) < len(self._missing)

    def variables(self) -> list[list[float]]:
        """Return the columns of the regression: the values, and which are missing if some are."""
        missing = [[float(each) for each in self._missing]] if any(self._missing) else []
        return [self._standard, *missing]

    def correlation(self, outcomes: Sequence[bool]) -> float:
        """Return the largest absolute correlation of a variable with the outcomes."""
        return max(abs(_correlation(variable, outcomes, self._weights)) for variable in self.variables())

    def term(self, coefficients: Sequence[float]) -> tuple[RiskTerm, float]:
        """Return the term with these coefficients of the variables, on the scale of the signal, and its constant."""
        coefficient = _rounded(coefficients[0] / (self._deviation or 1.0) if self._deviation else 0.0)
        constant = -coefficient * self._mean
        missing = _rounded(coefficients[1] - constant) if len(coefficients) > 1 else None
        ends = (None, None) if self._is_boolean else (self._lowest, self._highest)
        term = RiskTerm(signal=self._name, coefficient=coefficient, lowest=ends[0], highest=ends[1], missing=missing)
        return term, constant


def _finite(value: SignalValue) -> float | None:
    """Return the value between -LARGEST and LARGEST; None for none, and for what is no number."""
    return None if value is None or math.isnan(value) else float(min(max(value, -LARGEST), LARGEST))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the middle values, rounded; 0 for no values."""
    ordered, tail = sorted(values) or [0.0], round(TAIL_SHARE * (len(values) - 1))
    return _rounded(ordered[max(0, tail)]), _rounded(ordered[-1 - max(0, tail)])


def _correlation(values: Sequence[float], outcomes: Sequence[bool], weights: Sequence[float]) -> float:
    total = sum(weights)
    mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / total
    share = sum(weight * outcome for weight, outcome in zip(weights, outcomes, strict=True)) / total
    rows = [
        (value - mean, outcome - share, weight)
        for value, outcome, weight in zip(values, outcomes, weights, strict=True)
    ]
    spread = (sum(w * x * x for x, _, w in rows) * sum(w * y * y for _, y, w in rows)) ** 0.5
    return sum(w * x * y for x, y, w in rows) / spread if spread > 0 else 0.0


def _part(term: RiskTerm, value: SignalValue) -> float | None:
    if value is None:
        return term.missing
    if term.lowest is None or term.highest is None:
        return term.coefficient if value else 0.0
    number = float(value)
    return term.coefficient * (term.lowest if number < term.lowest else min(number, term.highest))


def _expression(term: RiskTerm) -> str:
    name = term.signal
    if term.lowest is None or term.highest is None:
        part = f"{name} ? {_number(term.coefficient)} : 0.0"
    else:
        value, lowest, highest = f"double({name})", _number(term.lowest), _number(term.highest)
        clamped = f"({value} < {lowest} ? {lowest} : {value} > {highest} ? {highest} : {value})"
        part = f"{_number(term.coefficient)} * {clamped}"
    return f"({part})" if term.missing is None else f"({name} == null ? {_number(term.missing)} : {part})"


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _number(value: float) -> str:
    """Return a literal of the type double.

    >>> _number(3.0), _number(-1e-7), _number(1e30)
    ('3.0', '-1e-07', '1e+30')
    """
    return repr(value)
