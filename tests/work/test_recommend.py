"""A recommended rule, from decisions of simulated reviewers on jobs of a store."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from signoff.core.access import Caller
from signoff.core.job import Decision, Edit, Job
from signoff.core.reviews.coin import Coin
from signoff.core.reviews.planted import PlantedItem
from signoff.core.reviews.policy import JobPolicy, PolicyVersion
from signoff.core.reviews.risk_score import expression_of
from signoff.core.reviews.rules import Action, Rule
from signoff.core.reviews.ruling import Ruling
from signoff.errors import BadRequest, Conflict, Forbidden
from signoff.work.jobs.cancel import cancel
from signoff.work.reviews.dry_run import dry_run
from signoff.work.reviews.recommend import MIN_WRONG, Recommendation, recommend
from signoff.work.services import Services
from support.stores import a_step, leased, together
from work.test_error_budget import ADMIN, OWNER, REVIEWER, BudgetedServer, desk, is_audit

pytestmark = pytest.mark.anyio
LOOK_RATE = 0.5
AT_ONCE = 40


class SimulatedDesk:
    """A store in which jobs have left, or were held and decided on, under the policy `careful`."""

    def __init__(self, here: BudgetedServer, seed: int = 1) -> None:
        self.services: Services = here.services
        self.chance = random.Random(seed)

    async def answer(self, *, is_wrong: bool, is_looked_at: bool, by_coin: bool = True, **more: Any) -> Job:
        """Add an answer; the longer ones are those that reviewers find wrong, most of the time."""
        length = round(self.chance.gauss(120 if is_wrong else 60, 30))
        response = self._response("x" * max(1, length))
        value = 0.1 if is_looked_at and by_coin else 0.9
        coin = Coin(value=value, look_rate=LOOK_RATE) if by_coin else None
        signals = {"signals.judge": self.chance.random()}
        ruling = Ruling(
            outcome="hold" if is_looked_at else "pass", policy="careful", version=1, signals=signals, coin=coin
        )
        policy = JobPolicy(named=(PolicyVersion(name="careful", version=1),), is_judged=True)
        verdict = self._verdict(is_wrong=is_wrong) if is_looked_at else None  # before the first write: see `answers`
        job = await leased(self.services.store, policy=policy, **({"metadata": b'{"n":1e300}'} | more))
        changes = {"response": response, "ruling": ruling}
        job = await self.services.store.jobs.transition(
            job.id, a_step("hold" if is_looked_at else "succeed", changes=changes)
        )
        return job if verdict is None else await self._decided(job, verdict)

    async def decide(self, job: Job, *, is_wrong: bool) -> Job:
        """Give a job the verdict of a reviewer."""
        return await self._decided(job, self._verdict(is_wrong=is_wrong))

    def _verdict(self, *, is_wrong: bool) -> str:
        return self.chance.choice(("reject", "edit") if is_wrong else ("approve", "blank"))

    async def _decided(self, job: Job, verdict: str) -> Job:
        # an edit of white space is none
        edits = {"edit": self._response("better"), "blank": (job.response or b"").replace(b"xx", b"x x")}
        edited = edits.get(verdict)
        edit = Edit() if edited is None else Edit(response=edited.decode())
        decision = Decision(verdict="reject" if verdict == "reject" else "approve", reviewer="ann", edit=edit)
        at_once = {"changes": {"decision": decision}, "after_seconds": {"release_at": 0}, "decision": decision}
        takes_effect = {} if edited is None else {"changes": {"response": edited}}
        return await self.services.store.jobs.transition(
            job.id, a_step("decide", **at_once), a_step(decision.verdict, **takes_effect)
        )

    async def answers(self, number: int) -> None:
        """Add answers of which a third is wrong, and a person looked at about half.

        They are written together, which costs less, and are the same each time: an answer takes all that is random
        before its first write.
        """

        async def one() -> None:
            is_wrong, is_looked_at = self.chance.random() < 0.33, self.chance.random() < LOOK_RATE
            await self.answer(is_wrong=is_wrong, is_looked_at=is_looked_at)

        for first in range(0, number, AT_ONCE):
            await together(one() for _ in range(min(AT_ONCE, number - first)))

    def _response(self, text: str) -> bytes:
        message = {"role": "assistant", "content": text}
        return msgspec.json.encode({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


async def recommended(services: Services, caller: Caller = ADMIN, **more: Any) -> Recommendation:
    return await recommend(services, caller, "careful", **more)


async def test_a_rule_on_what_the_reviewers_go_by_holds_as_many_as_it_says(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        simulated = SimulatedDesk(here)
        await simulated.answers(240)
        result = await recommended(here.services)
        assert (result.answers, result.reviewed, result.random) == (240, result.reviewed, result.reviewed)
        assert 90 < result.reviewed < 150
        assert 0.2 < result.error_share.value < 0.45
        assert result.score.terms[0].signal == "answer.length"
        assert result.score.terms[0].coefficient > 0
        assert result.validation.auc.lowest > 0.75
        assert result.validation.brier.highest < result.validation.brier_of_share
        shares = [row.held_share for row in result.thresholds]
        assert shares == sorted(shares)
        assert [row.caught.value for row in result.thresholds] == sorted(row.caught.value for row in result.thresholds)
        # the draft with any threshold holds as many as the table says, and is not saved
        for row in result.thresholds:
            rule = Rule(if_=f"!({expression_of(result.score)} < {row.threshold!r})", then="hold")
            draft = msgspec.structs.replace(result.draft, rules=(rule,))
            tried = await dry_run(here.services, ADMIN, "careful", last=5000, draft=draft)
            assert (tried.held, tried.failed, tried.answers) == (row.held, 0, result.answers)
        assert (await dry_run(here.services, ADMIN, "careful", last=5000)).held == 0
        [chosen] = [row for row in result.thresholds if row.threshold == result.threshold]
        tried = await dry_run(here.services, ADMIN, "careful", last=5000, draft=result.draft)
        assert (tried.held, tried.wrong) == (chosen.held, result.wrong)
        assert 1 - tried.wrong_passed / tried.wrong >= 0.7


async def test_planted_items_and_forged_metadata_change_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        simulated = SimulatedDesk(here)
        await simulated.answers(200)
        before = await recommended(here.services)
        budgets = here.services.store.budgets
        await budgets.plant(PlantedItem(policy="careful", path="/v1/chat/completions", body=b"{}", response=b'"y"'))
        like = await leased(here.services.store)
        for number in range(30):
            job = await budgets.present_planted("careful", like, f"planted-{number}", actor="x")
            assert job is not None
            await simulated.decide(job, is_wrong=True)
        after = await recommended(here.services)
        assert msgspec.structs.replace(after, policy="") == msgspec.structs.replace(before, policy="")
        # metadata of callers is no signal
        assert {term.signal for term in before.score.terms} <= {"answer.length", "request.tokens", "answer.truncated"}
        await simulated.answer(is_wrong=True, is_looked_at=True, metadata=b'{"answer.length":-1e308}')
        assert (await recommended(here.services)).wrong == before.wrong + 1


async def test_what_other_rules_hold_counts_only_if_too_few_of_the_rest_weredecide(tmp_path: Path) -> None:
    long = Rule(if_="answer.length > 100", then="hold")
    async with desk(tmp_path, rules=(long,)) as here:
        simulated = SimulatedDesk(here)
        await simulated.answers(200)
        result = await recommended(here.services)
        assert "fitted to those of other rules too" in " ".join(result.cautions)
        for row in result.thresholds:
            rule = Rule(if_=f"!({expression_of(result.score)} < {row.threshold!r})", then="hold")
            draft = msgspec.structs.replace(result.draft, rules=(long, rule))
            assert (await dry_run(here.services, ADMIN, "careful", last=5000, draft=draft)).held == row.held


async def test_a_policy_that_holds_by_default_gets_a_rule_that_passes(tmp_path: Path) -> None:
    async with desk(tmp_path, budget=None, default=Action(then="hold")) as here:
        simulated = SimulatedDesk(here)
        await together(
            simulated.answer(is_wrong=number % 3 == 0, is_looked_at=True, by_coin=False) for number in range(100)
        )
        result = await recommended(here.services)
        assert (result.draft.rules[-1].then, result.draft.default.then) == ("pass", "hold")
        assert result.random == 0
        assert "say nothing about answers that pass" in " ".join(result.cautions)
        assert "no error budget" in " ".join(result.cautions)
        [chosen] = [row for row in result.thresholds if row.threshold == result.threshold]
        assert (await dry_run(here.services, ADMIN, "careful", last=5000, draft=result.draft)).held == chosen.held


async def test_a_coin_makes_an_answer_stand_for_those_that_nobody_looked_at(tmp_path: Path) -> None:
    async with desk(tmp_path, budget=None) as here:
        simulated = SimulatedDesk(here)
        # a closed gate, or a rule of before, has held each wrong one of these
        await together(
            simulated.answer(is_wrong=number % 2 == 0, is_looked_at=True, by_coin=number % 2 == 1)
            for number in range(120)
        )
        result = await recommended(here.services)
        # 60 wrong ones, and 60 right ones that stand for two each
        assert (result.wrong, result.random) == (60, 60)
        assert result.error_share.value == pytest.approx(60 / (60 + 60 / LOOK_RATE))


async def test_a_signal_that_is_stored_for_few_answers_is_left_out(tmp_path: Path) -> None:
    async with desk(tmp_path, judge="echo") as here:
        simulated = SimulatedDesk(here)
        await simulated.answers(160)
        result = await recommended(here.services)
        assert result.left_out["signals.logprob_mean"].startswith("not stored for")
        assert result.left_out["cost"] == "is the same for all answers"
        assert "signals.judge" in {term.signal for term in result.score.terms} | result.left_out.keys()
        assert "not stored" not in result.left_out.get("signals.judge", "")


async def test_the_verdict_on_a_cancelled_answer_under_audit_counts_once(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        jobs = await here.ask(20)
        [audit, *_] = [job for job in jobs if is_audit(job)]
        await cancel(here.services, OWNER, audit.id)
        [copy] = [job for job in await here.on_desk() if job.copy_of == audit.id]
        before = await dry_run(here.services, ADMIN, "careful", last=100)
        assert (before.answers, before.reviewed) == (20, 0)
        await here.decide(copy, "reject", reason="no")
        after = await dry_run(here.services, ADMIN, "careful", last=100)
        assert (after.answers, after.reviewed, after.wrong) == (20, 1, 1)


async def test_too_few_decisions_get_a_clear_error(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        simulated = SimulatedDesk(here)
        for number in range(2 * MIN_WRONG - 1):
            await simulated.answer(is_wrong=number % 2 == 1, is_looked_at=True)
        with pytest.raises(Conflict, match=r"needs 20 answers that people found wrong .* there are 19 and 20"):
            await recommended(here.services)
        await simulated.answer(is_wrong=True, is_looked_at=True)
        assert (await recommended(here.services)).wrong == MIN_WRONG


async def test_only_admins_get_a_recommendation_with_parameters_in_range(tmp_path: Path) -> None:
    async with desk(tmp_path, default=Action(then="reject")) as here:
        with pytest.raises(Forbidden):
            await recommended(here.services, REVIEWER)
        for wrong in ({"last": 0}, {"last": 5001}, {"caught": 0}, {"caught": 1.1}, {"caught": float("nan")}):
            with pytest.raises(BadRequest):
                await recommended(here.services, **wrong)
        with pytest.raises(Conflict, match="`default` of the policy rejects"):
            await recommended(here.services)
