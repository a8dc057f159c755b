"""Review queues and reasons for rejections: admins change them, reviewers see them."""

from collections.abc import Sequence

import msgspec

from signoff.core.access import Caller, check_admin, check_may_review
from signoff.core.allow_list import checked_host
from signoff.core.reviews.queues import ReviewQueue, check_queue, checked_reasons
from signoff.core.signing import Secret
from signoff.errors import BadRequest, NotFound
from signoff.work.services import Services


class QueueWebhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Webhook that gets the digests of a queue."""

    url: str
    """URL of the receiver."""
    secret: str | None = None
    """Secret (`whsec_…`) that signs its messages; None for the one of the server (`webhook_secret`)."""


class QueueChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `PUT /api/review-queues/{name}`."""

    members: list[str] = []
    """Emails of its reviewers."""
    emails: list[str] = []
    """Addresses that get digests of new, ageing and escalated answers by e-mail."""
    webhook: QueueWebhook | msgspec.UnsetType | None = msgspec.UNSET
    """Webhook that gets the same digests; null for none, and not set for the present one."""
    digest_seconds: float = 300
    """Seconds between two digests."""
    ageing_seconds: float | None = None
    """Seconds after which an answer that still waits is reported as ageing; null for never."""


async def list_queues(services: Services, caller: Caller) -> list[ReviewQueue]:
    """Return all queues for an admin, and their own for a reviewer. Raises Forbidden."""
    check_may_review(caller)
    queues = await services.store.review_queues.all()
    return [queue for queue in queues if caller.role == "admin" or caller.email in queue.members]


async def put_queue(services: Services, caller: Caller, name: str, change: QueueChange) -> ReviewQueue:
    """Create a queue, or replace the one with this name, and return it. Raises Forbidden, BadRequest."""
    check_admin(caller)
    old = await services.store.review_queues.get(name)
    sealed, host = (None, None) if old is None else (old.sealed, old.webhook_host)
    if change.webhook is None:
        sealed, host = None, None
    elif isinstance(change.webhook, QueueWebhook):
        sealed, host = _sealed(services, change.webhook)
    queue = ReviewQueue(
        name=name,
        members=tuple(sorted({member.strip().lower() for member in change.members})),
        emails=tuple(dict.fromkeys(change.emails)),
        sealed=sealed,
        webhook_host=host,
        digest_seconds=change.digest_seconds,
        ageing_seconds=change.ageing_seconds,
    )
    check_queue(queue)
    await _check_members(services, queue, set() if old is None else set(old.members))
    await services.store.review_queues.put(queue)
    return queue


def _sealed(services: Services, webhook: QueueWebhook) -> tuple[bytes, str]:
    """Return the webhook encrypted, and its host. Raises BadRequest, AddressRefused."""
    host = checked_host(webhook.url, services.rules.allow_list)
    if webhook.secret is None and not services.rules.webhook_secrets:
        raise BadRequest(
            "`webhook` needs a `secret` (whsec_…), as the setting `webhook_secret` is empty; set one of them."
        )
    try:
        _ = None if webhook.secret is None else Secret(webhook.secret)
    except ValueError as error:
        raise BadRequest(f"`webhook.secret` is not valid: {error}") from None
    return services.adapters.vault.seal(msgspec.json.encode(webhook).decode()), host


async def _check_members(services: Services, queue: ReviewQueue, present: set[str]) -> None:
    """Raise BadRequest if a new member may not review."""
    for member in queue.members:
        user = None if member in present else await services.store.people.user(member)
        if member not in present and (user is None or user.role == "user"):
            raise BadRequest(f"`members` must be reviewers or admins; {member!r} is neither.")


async def remove_queue(services: Services, caller: Caller, name: str) -> None:
    """Delete a queue; its held answers stay in it, and admins see them. Raises Forbidden, NotFound."""
    check_admin(caller)
    if not await services.store.review_queues.drop(name):
        raise NotFound(f"There is no review queue {name!r}.")


async def list_reasons(services: Services, caller: Caller) -> list[str]:
    """Return the reasons for rejections. Raises Forbidden."""
    check_may_review(caller)
    return await services.store.review_queues.reasons()


async def put_reasons(services: Services, caller: Caller, reasons: Sequence[str]) -> list[str]:
    """Replace the reasons for rejections, and return them. Raises Forbidden, BadRequest."""
    check_admin(caller)
    checked = checked_reasons(reasons)
    await services.store.review_queues.put_reasons(checked)
    return checked
