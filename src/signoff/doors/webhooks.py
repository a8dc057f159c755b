"""The webhook that a request names for the end of a job or a batch."""

import msgspec

from signoff.core.delivery import WebhookTarget
from signoff.core.signing import Secret
from signoff.errors import BadRequest


class DeliverTo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Webhook that gets a message when the job or the batch ends."""

    url: str
    """URL of the receiver."""
    secret: str | None = None
    """Secret (`whsec_…`) that signs the message; None for the one of the server (`webhook_secret`)."""


def parse_webhook(deliver: DeliverTo | None) -> WebhookTarget | None:
    """Return the webhook that `deliver` describes; None for none. Raises BadRequest for a secret that is not valid."""
    if deliver is None:
        return None
    try:
        return WebhookTarget(url=deliver.url, secret=None if deliver.secret is None else Secret(deliver.secret))
    except ValueError as error:
        raise BadRequest(f"`deliver.secret` is not valid: {error}") from None
