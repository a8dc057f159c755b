"""Pipelines of users with the outcomes that they expect, from `pipelines.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PIPELINES: dict[str, Any] = json.loads((Path(__file__).with_name("pipelines.json")).read_text())
