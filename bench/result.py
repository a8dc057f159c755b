"""Result of a measurement: tables that are printed, and kept as JSON for `docs/performance.md`."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Result:
    """Table of figures, row by row."""

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._rows = list[list[str]]()
        self._conditions = conditions(ROOT)
        print("  ".join(columns), flush=True)

    def add(self, *cells: object) -> None:
        """Add a row, and print it."""
        row = [str(cell) for cell in cells]
        self._rows.append(row)
        print("  ".join(cell.ljust(len(name)) for cell, name in zip(row, self._columns, strict=True)), flush=True)

    def save(self, path: Path | None) -> None:
        """Write the table to a file, with the conditions at the start of the run; do nothing without a path."""
        if path is not None:
            write(path, {**self._conditions, "columns": self._columns, "rows": self._rows})


def conditions(root: Path) -> dict[str, object]:
    """Return the date, the load of the last minute, the machine, and the commit of the checkout `root`."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "processor": cpu[0].partition(": ")[2] if cpu else platform.machine(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "checkout": commit(root),
    }


def commit(root: Path) -> str:
    """Return the abbreviated commit of a checkout, with `-dirty` after it if files differ."""
    command = ["git", "-C", root, "describe", "--always", "--dirty", "--exclude", "*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def write(path: Path, report: Mapping[str, object]) -> None:
    """Write a report as JSON, with a line for each of its figures."""
    figures = [json.dumps(each) for each in report.get("figures", ())]
    text = json.dumps({**report, "figures": "FIGURES"} if figures else report, indent=1, ensure_ascii=False)
    lines = ",\n".join(f"  {figure}" for figure in figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace('"FIGURES"', f"[\n{lines}\n ]") + "\n")
    print(f"Written to {path}", flush=True)


def show(table: Mapping[str, object]) -> None:
    """Print a table that has a title, columns and rows."""
    rows = [table["columns"], *table["rows"]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    print(f"\n{table['title']}")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)
