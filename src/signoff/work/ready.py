"""Ready: can this process do its work now?"""

from __future__ import annotations

from signoff.work.desk import Desk


async def ready(desk: Desk) -> tuple[bool, dict[str, bool]]:
    """Whether it can, and each part with whether it answers. Without the broker work begins later, but it is done."""
    parts = {"store": await desk.store.ready(), "broker": desk.broker.is_connected}
    return parts["store"], parts
