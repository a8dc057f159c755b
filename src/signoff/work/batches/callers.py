"""Callers of batches, whose rights are looked at again while their batches run."""

import msgspec

from signoff.core.access import Caller, lower_role
from signoff.core.batch import Batch
from signoff.errors import Unauthorized
from signoff.work.services import Services


async def caller_of_batch(services: Services, batch: Batch) -> Caller:
    """Return the caller who made a batch, with their present rights.

    The end of a session, or of the lifetime of a token, does not stop a batch. Raises Unauthorized if the user was
    disabled or the token revoked.
    """
    caller = batch.caller
    if caller.is_anonymous or caller.user_id <= 0:
        return caller
    user, token = await services.store.people.user_with_token(caller.user_id, caller.token_id)
    if user is None or not user.active:
        raise Unauthorized("The user who made the batch was disabled.")
    if caller.kind != "api" or caller.token_id == 0:
        return msgspec.structs.replace(caller, role=lower_role(caller.role, user.role))
    if token is None or not token.active:
        raise Unauthorized("The token that the batch was made with was revoked.")
    return msgspec.structs.replace(caller, role=lower_role(token.role, user.role), key_id=token.key_id)
