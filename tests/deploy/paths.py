"""The deployment files, and the settings in them."""

from __future__ import annotations

from pathlib import Path

from signoff.core.model import Model
from signoff.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# Seconds between the end of a drain and the kill: interrupted requests send their errors, and connections close.
MARGIN_SECONDS = 10
# The longest time of one attempt at a model: it waits for an endpoint, its program starts, and it answers.
_MODEL = Model(name="x", kind="echo")
CALL_SECONDS = _MODEL.queue_seconds + _MODEL.start_seconds + _MODEL.timeouts.total_seconds
HOLD_SECONDS: float = Settings.model_fields["hold_seconds"].default
MAX_FILE_BYTES: int = Settings.model_fields["max_file_bytes"].default
