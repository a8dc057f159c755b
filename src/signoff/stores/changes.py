"""News inside this process: who listens, and what they are told."""

from __future__ import annotations

import structlog

from signoff.store import Listener, Topic

log = structlog.get_logger()


class ChangeFeed:
    """Whoever listens. A listener that fails is logged, and spoils nothing for the others."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        self._listeners.append(listener)

    def publish(self, topic: Topic, name: str) -> None:
        """Calls every listener, in order."""
        for listener in self._listeners:
            try:
                listener(topic, name)
            except Exception:  # what is written is written, whatever a listener thinks of it
                log.exception("a listener failed", topic=topic, name=name)
