"""The scripts of the pages, which `make setup` bundles from `frontend/`; without them, the pages have their forms."""

import functools
from collections.abc import Mapping
from pathlib import Path

import msgspec

from signoff.core.fingerprint import fingerprint

STATIC = Path(__file__).parent / "static"
BUILT = STATIC / "built"
NOT_BUILT = (
    "The scripts of the dashboard are not built, so its pages have no keys, editors and live updates. "
    "Run `make setup` in the checkout, or install Signoff from its wheel, which carries them."
)


def bundle() -> Mapping[str, str]:
    """Return the file names of the bundle by entry, such as `desk.js`; none if it is not built."""
    return _read_manifest(BUILT)


@functools.cache
def static_hash() -> str:
    """Return a hash of the style sheets and scripts that need no building, for addresses to be cached for ever."""
    files = sorted(path for path in STATIC.iterdir() if path.is_file())
    return fingerprint(*(part for path in files for part in (path.name.encode(), path.read_bytes())))[:16]


@functools.cache
def _read_manifest(folder: Path) -> Mapping[str, str]:
    try:
        return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return {}
