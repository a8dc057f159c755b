"""Ready: can this process do its work now?"""

from __future__ import annotations

from signoff.work.desk import Desk


async def ready(desk: Desk) -> dict[str, bool]:
    """Each part that the work needs, and whether it answers."""
    return {"store": await desk.store.ready()}
