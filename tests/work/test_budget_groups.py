"""Error budgets with a period for each group, on the path of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from signoff.core.job import Job
from signoff.core.reviews.budget_period import BudgetPeriod
from signoff.core.reviews.error_budget import upper_bound
from signoff.core.reviews.rules import Budget
from work.test_error_budget import BUDGET, BudgetedServer, desk, is_audit

pytestmark = pytest.mark.anyio
# One open audit closes the gate.
TIGHT = Budget(answers=10 * (upper_bound(0, 0.5, 0.95) + 1), share=0.1, audit_rate=0.5, per="metadata.team")


async def ask(here: BudgetedServer, team: Any, number: int = 1) -> list[Job]:
    return await here.ask(number, metadata=msgspec.json.encode({"team": team}))


async def period(here: BudgetedServer, group: str) -> BudgetPeriod | None:
    return await here.services.store.budgets.period("careful", group)


async def test_a_closed_gate_of_one_group_lets_the_others_pass(tmp_path: Path) -> None:
    async with desk(tmp_path, TIGHT) as here:
        [await ask(here, "blue") for _ in range(40)]
        held = await ask(here, "blue", 4)
        assert [(job.status, is_audit(job)) for job in held] == [("human", False)] * 4
        # each of ten other groups has an even chance that its first answer passes
        others = [(await ask(here, f"other-{number}"))[0].status for number in range(10)]
        assert "success" in others
        blue = await period(here, "blue")
        assert blue is not None
        assert (blue.passes, blue.audits_open) == (0, 1)


async def test_a_fresh_value_for_each_request_gets_a_budget_for_each_and_every_coin(tmp_path: Path) -> None:
    async with desk(tmp_path, msgspec.structs.replace(BUDGET, per="metadata.team")) as here:
        jobs = [(await ask(here, f"team-{number}"))[0] for number in range(30)]
        for number, job in enumerate(jobs):
            assert job.status == ("human" if here.coin(job) < BUDGET.audit_rate else "success")
            mine = await period(here, f"team-{number}")
            assert mine is not None
            assert (mine.delivered, mine.audits) == ((0, 1) if job.status == "human" else (1, 0))
        assert await here.services.store.budgets.group_count("careful") == 30


@pytest.mark.parametrize("value", [{"a": 1}, "x" * 300, " blue", ["blue"]], ids=["object", "long", "blank", "list"])
async def test_an_answer_without_a_group_is_held(tmp_path: Path, value: Any) -> None:
    async with desk(tmp_path, msgspec.structs.replace(BUDGET, per="metadata.team")) as here:
        jobs = await ask(here, value, 6)
        assert [(job.status, job.ruling and job.ruling.coin) for job in jobs] == [("human", None)] * 6
        assert await here.services.store.budgets.group_count("careful") == 0


async def test_users_have_budgets_of_their_own(tmp_path: Path) -> None:
    async with desk(tmp_path, msgspec.structs.replace(BUDGET, per="user")) as here:
        for user_id in (1, 2):
            await here.ask(10, user_id=user_id)
        periods = await here.services.store.budgets.groups("careful")
        assert [each.group for each in periods] == ["1", "2"]
        assert [each.delivered + each.audits for each in periods] == [10, 10]


async def test_jobs_that_were_submitted_before_there_were_groups_count_in_their_group(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        old = here.policy
        await here.change(budget=msgspec.structs.replace(BUDGET, per="user"))
        await here.ask(4, user_id=1)
        here.policy = old
        await here.ask(6, user_id=1)
        user = await period(here, "1")
        assert user is not None
        assert (user.terms.per, user.delivered + user.audits) == ("user", 10)
