"""Change notifications inside this process, and their form on the way to others: `TOPIC NAME`, one a line."""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast, get_args

import structlog

from signoff.core.job import Job
from signoff.store import Listener, Topic, TransitionListener, TransitionRequest

ANYTHING: dict[tuple[Topic, str], None] = {("any", ""): None}
TOPICS = frozenset(get_args(Topic))
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


class TransitionFeed:
    """The observers of the transitions of this process; as with listeners, an exception of one is only logged."""

    def __init__(self) -> None:
        self._observers: list[TransitionListener] = []

    def observe(self, observer: TransitionListener) -> None:
        """See `store.Jobs`."""
        self._observers.append(observer)

    def publish(self, job: Job, requests: Sequence[TransitionRequest]) -> None:
        """Call every observer."""
        for observer in self._observers:
            try:
                observer(job, requests)
            except Exception:  # the transitions are committed
                log.exception("transition_observer_failed", job_id=job.id)


def pack_changes(items: Iterable[tuple[Topic, str]], max_bytes: int) -> list[str]:
    """Pack notifications into few payloads of at most `max_bytes`. One that is too long becomes `any`."""
    groups, size_bytes = [list[str]()], 0
    for topic, name in items:
        line = f"{topic} {name}"
        if len(line.encode()) > max_bytes:
            line = "any "
        if size_bytes + len(line.encode()) > max_bytes:
            groups.append([])
            size_bytes = 0
        groups[-1].append(line)
        size_bytes += len(line.encode()) + 1
    return ["\n".join(lines) for lines in groups if lines]


def unpack_changes(payload: str) -> Iterator[tuple[Topic, str]]:
    """Yield the notifications of a payload, without those of unknown topics."""
    for line in payload.splitlines():
        topic, _, name = line.partition(" ")
        if topic in TOPICS:
            yield cast("Topic", topic), name
