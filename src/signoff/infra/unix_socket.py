"""Addresses of Unix sockets."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

# Linux takes 107 bytes, macOS 103.
MAX_ADDRESS_BYTES = 100


@contextmanager
def socket_address(path: Path) -> Generator[str]:
    """Yield `path`, or if it is too long for a socket address, a shorter path to the same file (only on Linux)."""
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
