"""The whole simulation: `python -m error_budgets [RUNS]` prints how often each kind of run goes over its budget."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from error_budgets.corpus import FILES, read_answers
from error_budgets.processes import Tally
from error_budgets.runs import ADVERSARIES, ALLOWED, DRIFTS, run_drift, threshold_of

MAX_SHARE_OVER = 0.05
MIN_SHARE_PASSED = 0.78
# The gate has closed long before.
ADVERSARY_ANSWERS = 500


def main(runs: int) -> int:
    """Print a line for each kind of run; return 1 if one is over its budget too often."""
    corpora = {name: read_answers(name) for name in FILES}
    threshold, is_kept = threshold_of(corpora["tweets"]), True
    for drift in DRIFTS:
        start = time.monotonic()
        tallies = asyncio.run(_repeat(lambda seed, drift=drift: run_drift(corpora, drift, seed, threshold), runs))
        is_kept &= _report(drift, tallies, start)
        if drift == "tweets":
            passed = sum(tally.delivered for tally in tallies)
            is_kept &= passed >= MIN_SHARE_PASSED * sum(tally.answers for tally in tallies)
    for name, adversary in ADVERSARIES.items():
        start = time.monotonic()
        tallies = asyncio.run(_repeat(lambda seed, run=adversary: run(seed, ADVERSARY_ANSWERS), runs))
        is_kept &= _report(name, tallies, start)
    return 0 if is_kept else 1


async def _repeat(run: Callable[[int], Awaitable[Tally]], runs: int) -> list[Tally]:
    return [await run(seed) for seed in range(runs)]


def _report(name: str, tallies: list[Tally], start: float) -> bool:
    over = sum(tally.wrong_delivered > ALLOWED for tally in tallies)
    passed = sorted(tally.delivered / tally.answers for tally in tallies)
    wrong = sorted(tally.wrong_delivered for tally in tallies)
    sys.stdout.write(
        f"{name:18} over budget in {over} of {len(tallies)} runs ({over / len(tallies):.1%}); passed without a person: "
        f"mean {sum(passed) / len(passed):.1%}, least {passed[0]:.1%}; wrong: median {wrong[len(wrong) // 2]}, "
        f"most {wrong[-1]} of {ALLOWED} allowed; {time.monotonic() - start:.0f} s\n"
    )
    sys.stdout.flush()
    return over <= MAX_SHARE_OVER * len(tallies)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000))
