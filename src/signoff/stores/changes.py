"""Change notifications inside this process."""

import structlog

from signoff.store import Listener, Topic

log = structlog.get_logger()


class ChangeFeed:
    """The listeners of this process. An exception of one is logged, and does not keep the others from being called."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """See `store.Store`."""
        self._listeners.append(listener)

    def publish(self, topic: Topic, name: str) -> None:
        """Call every listener in the order in which they were added."""
        for listener in self._listeners:
            try:
                listener(topic, name)
            except Exception:  # the change is committed: a faulty listener must not turn it into an error
                log.exception("change_listener_failed", topic=topic, name=name)
