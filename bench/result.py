"""Result of a measurement: a table that is printed, and kept as JSON for `docs/performance.md`."""

import json
import os
import platform
import subprocess
from pathlib import Path


class Result:
    """Table of figures, row by row."""

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._rows = list[list[str]]()
        print("  ".join(columns), flush=True)

    def add(self, *cells: object) -> None:
        """Add a row, and print it."""
        row = [str(cell) for cell in cells]
        self._rows.append(row)
        print("  ".join(cell.ljust(len(name)) for cell, name in zip(row, self._columns, strict=True)), flush=True)

    def save(self, path: Path | None, root: Path) -> None:
        """Write the table to a file, with the commit of the checkout that was measured; do nothing without a path."""
        if path is None:
            return
        commit = subprocess.run(
            ["git", "-C", root, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True, check=True
        )
        result = {
            "commit": commit.stdout.strip(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "columns": self._columns,
            "rows": self._rows,
        }
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
