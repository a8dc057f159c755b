"""The native API of review queues and of reasons for rejections: admins change them, reviewers see them."""

from typing import Any

import msgspec
from litestar import Router, delete, get, put
from litestar.params import FromPath

from signoff.core.access import Caller
from signoff.core.reviews.queues import ReviewQueue
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import parse_json
from signoff.work.reviews.queues import QueueChange, list_queues, list_reasons, put_queue, put_reasons, remove_queue


class ReasonsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `PUT /api/review-reasons`."""

    reasons: list[str]
    """Reasons in the order in which reviewers see them."""


@get("/review-queues", summary="List review queues")
async def get_review_queues(services: InjectedServices, caller: InjectedCaller) -> dict[str, Any]:
    """Return all review queues for an admin, and those that the caller belongs to for a reviewer."""
    return {"data": [_queue_json(caller, queue) for queue in await list_queues(services, caller)]}


@put("/review-queues/{name:str}", summary="Create or change a review queue")
async def put_review_queue(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> dict[str, Any]:
    """Store the queue with its members, and with the receivers of its digests."""
    change = parse_json(await request.body(), QueueChange, "review queue")
    return _queue_json(caller, await put_queue(services, caller, name, change))


@delete("/review-queues/{name:str}", status_code=204, summary="Remove a review queue")
async def delete_review_queue(services: InjectedServices, caller: InjectedCaller, name: FromPath[str]) -> None:
    """Remove the queue; its held answers stay in it, where admins see them."""
    await remove_queue(services, caller, name)


@get("/review-reasons", summary="List reasons for rejections")
async def get_review_reasons(services: InjectedServices, caller: InjectedCaller) -> dict[str, list[str]]:
    """Return the reasons that reviewers may choose from; they may also write their own."""
    return {"reasons": await list_reasons(services, caller)}


@put("/review-reasons", summary="Replace the reasons for rejections")
async def put_review_reasons(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller
) -> dict[str, list[str]]:
    """Store the reasons, in place of the earlier ones."""
    wanted = parse_json(await request.body(), ReasonsRequest, "list of reasons")
    return {"reasons": await put_reasons(services, caller, wanted.reasons)}


def _queue_json(caller: Caller, queue: ReviewQueue) -> dict[str, Any]:
    members = {"name": queue.name, "members": [*queue.members]}
    if caller.role != "admin":
        return members
    return members | {
        "emails": [*queue.emails],
        "webhook_host": queue.webhook_host,
        "digest_seconds": queue.digest_seconds,
        "ageing_seconds": queue.ageing_seconds,
    }


router = Router(
    "/api",
    route_handlers=[
        get_review_queues,
        put_review_queue,
        delete_review_queue,
        get_review_reasons,
        put_review_reasons,
    ],
    tags=["reviews"],
)
