"""Repeat one run of the simulation: `python tests/simulate.py SEED`; `--help` lists the options."""

from __future__ import annotations

import argparse
import sys

import msgspec

from simulation.run import STEPS, Broken, Simulation


def main() -> int:
    """Run the simulation and print its result; return 1 if a law was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--climate", default="{}", help="what is otherwise than the seed says: an object of JSON")
    parser.add_argument("--aloud", action="store_true", help="everything that is seen, as it happens")
    parser.add_argument("--about", default="", help="at the end, what was seen lately that mentions this")
    arguments = parser.parse_args()
    simulation = Simulation(
        arguments.seed, steps=arguments.steps, aloud=arguments.aloud, **msgspec.json.decode(arguments.climate)
    )
    try:
        result = simulation.run()
    except Broken as broken:
        lines = simulation.history.about(arguments.about) if arguments.about else []
        sys.stdout.write("\n".join([*lines, str(broken), ""]))
        return 1
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(result)).decode() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
