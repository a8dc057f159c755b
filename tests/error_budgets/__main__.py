"""The whole simulation: how often each kind of run goes over its budget.

Run as `python -m error_budgets [RUNS [KIND…]]`; without a KIND, all of them run.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from error_budgets.corpus import FILES, read_answers
from error_budgets.processes import Tally
from error_budgets.runs import (
    ADVERSARIES,
    ADVERSARY_ANSWERS,
    ADVERSARY_BUDGET,
    DRIFT_BUDGET,
    DRIFTS,
    Corpora,
    is_broken,
    run_drift,
    runs_over,
    threshold_of,
)
from signoff.core.reviews.budget_period import terms_of

MIN_SHARE_PASSED = 0.78

# Runs that a process makes before it hands their tallies over.
CHUNK = 20
_corpora: Corpora = {}


def main(runs: int, kinds: Sequence[str]) -> int:
    """Print a line for each kind of run; return 1 if one is over its budget too often."""
    is_kept = True
    with ProcessPoolExecutor(initializer=_read) as processes:
        for name in kinds or (*DRIFTS, *ADVERSARIES):
            start = time.monotonic()
            tallies = list(processes.map(_run, [name] * runs, range(runs), chunksize=CHUNK))
            is_kept &= _report(name, tallies, start)
            if name == "tweets":
                passed = sum(tally.delivered for tally in tallies)
                is_kept &= passed >= MIN_SHARE_PASSED * sum(tally.answers for tally in tallies)
    return 0 if is_kept else 1


def _read() -> None:
    """Read the texts, once in each process."""
    _corpora.update({name: read_answers(name) for name in FILES})  # type: ignore[attr-defined]


def _run(name: str, seed: int) -> Tally:
    """Return the tally of one run."""
    if name in ADVERSARIES:
        return asyncio.run(ADVERSARIES[name](seed, ADVERSARY_ANSWERS))
    return asyncio.run(run_drift(_corpora, name, seed, threshold_of(_corpora["tweets"])))


def _report(name: str, tallies: list[Tally], start: float) -> bool:
    budget = ADVERSARY_BUDGET if name in ADVERSARIES else DRIFT_BUDGET
    over = runs_over(tallies, budget)
    passed = sorted(tally.delivered / tally.answers for tally in tallies)
    wrong = sorted(tally.wrong_delivered for tally in tallies)
    sys.stdout.write(
        f"{name:18} over budget in {over} of {len(tallies)} runs ({over / len(tallies):.1%}); passed without a person: "
        f"mean {sum(passed) / len(passed):.1%}, least {passed[0]:.1%}; wrong: median {wrong[len(wrong) // 2]}, "
        f"most {wrong[-1]} of {terms_of(budget).allowed} allowed; {time.monotonic() - start:.0f} s\n"
    )
    sys.stdout.flush()
    return not is_broken(tallies, budget)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000, sys.argv[2:]))
