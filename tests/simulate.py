"""Repeat one run of the simulation: `python tests/simulate.py SEED`; `--help` lists the options."""

from __future__ import annotations

import argparse
import sys

import msgspec

from simulation.run import STEPS, Broken, Simulation


def main() -> int:
    """Run the simulation and print its result; return 1 if a law was broken."""
    options = argparse.ArgumentParser()
    options.add_argument("seed", type=int)
    options.add_argument("--steps", type=int, default=STEPS)
    options.add_argument("--climate", default="{}", help="what is otherwise than the seed says: an object of JSON")
    options.add_argument("--aloud", action="store_true", help="everything that is seen, as it happens")
    options.add_argument("--about", default="", help="at the end, what was seen lately that mentions this")
    asked = options.parse_args()
    simulation = Simulation(asked.seed, steps=asked.steps, aloud=asked.aloud, **msgspec.json.decode(asked.climate))
    try:
        told = simulation.run()
    except Broken as broken:
        lines = simulation.history.about(asked.about) if asked.about else []
        sys.stdout.write("\n".join([*lines, str(broken), ""]))
        return 1
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(told)).decode() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
