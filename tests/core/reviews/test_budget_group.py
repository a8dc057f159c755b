"""Groups of an error budget: which one an answer belongs to, and which answers belong to none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from signoff.core.reviews.budget_group import check_per, group_of
from support.stores import a_job


@pytest.mark.parametrize("per", [None, "user", "prompt_version", "metadata.team", "metadata.a.b", "metadata.é"])
def test_a_budget_is_for_all_or_for_each_user_prompt_version_or_value_of_the_metadata(per: str | None) -> None:
    check_per(per)


@pytest.mark.parametrize("per", ["", "users", "metadata", "metadata.", "metadata. x", "metadata.\n", "tags.team"])
def test_other_kinds_of_groups_are_refused(per: str) -> None:
    with pytest.raises(ValueError, match=r"`budget\.per` must be"):
        check_per(per)


def test_users_and_prompt_versions_are_groups() -> None:
    assert group_of(a_job(user_id=12), "user") == "12"
    assert group_of(a_job(prompt="summary", prompt_version=3), "prompt_version") == "summary@3"
    assert group_of(a_job(), "prompt_version") == ""


@pytest.mark.parametrize(
    ("metadata", "group"),
    [
        ({"team": "blue"}, "blue"),
        ({"team": 7}, "7"),
        ({"team": True}, "true"),
        ({"team": 1.5}, "1.5"),
        ({"team": ""}, ""),
        ({"team": None}, ""),
        ({"other": "blue"}, ""),
        (None, ""),
        ({"team": "x" * 255}, "x" * 255),
    ],
)
def test_a_value_of_the_metadata_is_a_group_and_no_value_is_one_too(metadata: Any, group: str) -> None:
    assert group_of(a_job(metadata=msgspec.json.encode(metadata)), "metadata.team") == group


@pytest.mark.parametrize(
    "metadata",
    [{"team": []}, {"team": {"a": 1}}, {"team": "x" * 256}, {"team": "a\x00b"}, {"team": " blue"}, ["team"], "team"],
    ids=str,
)
def test_an_answer_whose_value_is_no_name_has_no_group(metadata: Any) -> None:
    assert group_of(a_job(metadata=msgspec.json.encode(metadata)), "metadata.team") is None


def test_metadata_of_the_request_counts_where_the_job_has_none() -> None:
    job = a_job(body=b'{"metadata":{"team":"red"}}')
    assert group_of(job, "metadata.team") == "red"
    assert group_of(msgspec.structs.replace(job, metadata=b'{"team":"blue"}'), "metadata.team") == "blue"
