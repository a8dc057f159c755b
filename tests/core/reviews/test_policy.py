"""Tests of the policy that decides whether an answer is reviewed."""

from __future__ import annotations

import pytest

from signoff.core.reviews.policy import JobPolicy, Review, policy_for


@pytest.mark.parametrize("base", ["always", "never"])
@pytest.mark.parametrize(
    ("target", "door", "rules"),
    [
        (None, "always", "always"),
        (None, "never", "never"),
        ("always", "always", "always"),
        ("always", "never", "always"),
        ("never", "always", "never"),
        ("never", "never", "never"),
    ],
)
def test_the_review_mode_of_the_target_overrides_that_of_the_door(
    target: Review | None, door: Review, rules: Review, base: Review
) -> None:
    # given the defaults of the operator
    defaults = JobPolicy(review=base, deadline_seconds=60, on_deadline="approve", undo_seconds=5)
    # when a target and a door each set a review mode
    policy = policy_for(target, door, defaults)
    # then the mode of the target wins over that of the door, and the other defaults stay
    assert policy == JobPolicy(review=rules, deadline_seconds=60, on_deadline="approve", undo_seconds=5)


def test_only_an_answer_that_is_always_reviewed_may_be_held() -> None:
    assert JobPolicy(review="always").may_hold
    assert not JobPolicy(review="never").may_hold


def test_without_a_word_nothing_is_held_and_nothing_leaves_by_itself() -> None:
    assert JobPolicy() == JobPolicy(review="never", deadline_seconds=None, on_deadline="stay", undo_seconds=0)
