"""Ready: can this process do its work now?"""

from __future__ import annotations

from signoff.work.desk import Desk


async def ready(desk: Desk) -> tuple[bool, dict[str, bool]]:
    """Whether it can, and each part with whether it answers. Without the broker work begins later, but it is done;
    a stream that is not listened to by this process waits where it is.
    """
    parts = {"store": await desk.store.ready(), "broker": desk.broker.is_connected}
    streams = {f"stream:{name}": listening.ok for name, listening in desk.streams.listening.items()}
    return parts["store"], parts | streams
