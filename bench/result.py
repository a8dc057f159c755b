"""Result of a measurement: a table that is printed, and kept as JSON for `docs/performance.md`."""

import json
import os
import platform
import time
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

    def save(self, path: Path | None) -> None:
        """Write the table to a file, with the date and what it was measured on; do nothing without a path."""
        if path is None:
            return
        result = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "load": round(os.getloadavg()[2], 1),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "columns": self._columns,
            "rows": self._rows,
        }
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
