"""Tests of what applies under several policies: member by member, the strictest of what they say."""

from __future__ import annotations

import itertools

import pytest

from signoff.core.reviews.policy import Escalation, JobPolicy, OnDeadline, PolicyVersion
from signoff.core.reviews.ruling import Ruling
from signoff.core.reviews.strictness import deadline_of, stricter, strictest_ruling

LAW = Escalation("law")


@pytest.mark.parametrize("is_swapped", [False, True], ids=["then, now", "now, then"])
@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"outcome": "pass"}, {"outcome": "hold"}, {"outcome": "hold"}),
        ({"outcome": "reject", "code": "leak"}, {"outcome": "hold", "votes": 2}, {"outcome": "reject", "code": "leak"}),
        # a member of a ruling that does not decide counts for nothing
        ({"outcome": "hold"}, {"outcome": "pass", "audit": 0.5}, {"outcome": "hold", "audit": None}),
        ({"outcome": "pass"}, {"outcome": "pass", "audit": 0.1, "rule": 3}, {"audit": 0.1, "rule": 3}),
        ({"outcome": "pass", "audit": 0.01}, {"outcome": "pass", "audit": 0.5}, {"audit": 0.5}),
        (
            {"outcome": "hold", "votes": 2, "queue": None},
            {"outcome": "hold", "queue": "law"},
            {"votes": 2, "queue": "law"},
        ),
    ],
    ids=str,
)
def test_the_strictest_ruling_has_the_strictest_of_each_member(
    one: dict[str, object], other: dict[str, object], expected: dict[str, object], *, is_swapped: bool
) -> None:
    rulings = [Ruling(**one), Ruling(**other)]  # type: ignore[arg-type]
    ruling = strictest_ruling(rulings[::-1] if is_swapped else rulings, JobPolicy())
    assert {name: getattr(ruling, name) for name in expected} == expected


# Each is stricter than the one before it.
DEADLINES: list[tuple[float | None, OnDeadline | Escalation]] = [
    (60, "approve"),
    (3600, "approve"),
    (3600, "reject"),
    (60, "reject"),
    (60, LAW),
    (60, "stay"),
]


@pytest.mark.parametrize("is_swapped", [False, True], ids=["then, now", "now, then"])
@pytest.mark.parametrize(("lenient", "strict"), list(itertools.pairwise(DEADLINES)), ids=str)
def test_the_stricter_deadline_counts(
    lenient: tuple[float, OnDeadline], strict: tuple[float, OnDeadline], *, is_swapped: bool
) -> None:
    ordered = [strict, lenient] if is_swapped else [lenient, strict]
    rulings = [Ruling(outcome="hold", deadline_seconds=each[0], on_deadline=each[1]) for each in ordered]
    assert deadline_of(strictest_ruling(rulings, JobPolicy()), JobPolicy()) == strict
    if not isinstance(strict[1], Escalation) and not isinstance(lenient[1], Escalation):
        one, other = (JobPolicy(review="always", deadline_seconds=each[0], on_deadline=each[1]) for each in ordered)
        assert deadline_of(None, stricter(one, other)) == strict


def test_an_answer_without_a_deadline_stays_whatever_another_policy_says() -> None:
    then = Ruling(outcome="hold", deadline_seconds=60, on_deadline="approve", version=1)
    now = Ruling(outcome="hold", votes=2, version=2)
    for rulings in ([then, now], [now, then]):
        ruling = strictest_ruling(rulings, JobPolicy())
        assert (ruling.votes, deadline_of(ruling, JobPolicy()).seconds) == (2, None)
    # a ruling without a deadline has that of the job's policy
    lenient = JobPolicy(deadline_seconds=600, on_deadline="approve")
    assert deadline_of(strictest_ruling([then, now], lenient), lenient) == (600, "approve")


def test_the_present_version_is_named_if_both_say_the_same() -> None:
    rulings = [Ruling(outcome="hold", version=version) for version in (1, 2)]
    assert strictest_ruling(rulings, JobPolicy()).version == 2


def test_the_deadline_and_the_time_to_undo_are_those_of_what_holds() -> None:
    holding = JobPolicy(review="always", deadline_seconds=60, on_deadline="approve", undo_seconds=1)
    passing = JobPolicy(deadline_seconds=None, on_deadline="stay", undo_seconds=5)
    assert stricter(holding, passing) == stricter(passing, holding) == holding
    longer = JobPolicy(is_judged=True, on_deadline="stay", undo_seconds=5, named=(PolicyVersion("p", 1),))
    both = stricter(holding, longer)
    assert (both.review, both.on_deadline, both.deadline_seconds, both.undo_seconds) == ("always", "stay", None, 5)
    assert (both.named, both.is_judged) == (longer.named, True)
