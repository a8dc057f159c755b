"""Render a chart with Helm's own library, in a process of its own: the library brings a runtime of its own.

The arguments are the folder of the chart, and a JSON list of values. Print, for each of the values, the documents by
file, or the error; then the findings of `helm lint` with the first values.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import helm_python as helm


def main(folder: str, cases: list[dict[str, Any]]) -> None:
    """Print the results as one JSON value."""
    results = list[Any]()
    with helm.Chart.load(folder) as chart:
        for values in cases:
            try:
                chart.validate_schema(values)
                results.append(chart.render(values, name="demo", namespace="default"))
            except helm.HelmError as error:
                results.append(str(error))
    sys.stdout.write(json.dumps([*results, helm.lint(folder, cases[0], strict=True)]))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
