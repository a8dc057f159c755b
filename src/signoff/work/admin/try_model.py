"""A trial request to a model, by an admin who sets it up."""

import msgspec

from signoff.core.access import Caller, check_admin
from signoff.core.api_paths import PREDICT
from signoff.core.ask import Ask
from signoff.core.cache import CacheControl
from signoff.work.call import begin_call, whole_answer
from signoff.work.services import Services


async def try_model(services: Services, caller: Caller, name: str, body: bytes) -> bytes:
    """Return the answer of the model to `body`, by the path of every call, without the cache.

    Raises Forbidden, JobFailed, ReviewPending, ModelFailed or a subclass, and what `begin_call` raises.
    """
    check_admin(caller)
    plain = Ask(door="native", caller=caller, path=PREDICT, body=body, target=name, lane="now", wait_seconds=0)
    ask = msgspec.structs.replace(plain, cache_control=CacheControl(no_store=True))
    return await whole_answer(services, await begin_call(services, ask))
