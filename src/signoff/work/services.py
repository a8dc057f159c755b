"""The desk: a frozen bag of the parts that verbs work with. It has no methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from signoff.broker import Broker
from signoff.core.allow_list import Reach
from signoff.core.delivery import DeliveryKind
from signoff.core.policy import Policy
from signoff.core.retry import Backoff
from signoff.core.signing import Secret
from signoff.core.stream import Stream
from signoff.deliverer import Courier
from signoff.engine import Engine
from signoff.infra.vault import Vault
from signoff.runtime.background import Background
from signoff.runtime.callers import Callers
from signoff.runtime.compositions import Compositions
from signoff.runtime.functions import Functions
from signoff.runtime.inflight import InFlight
from signoff.runtime.keys import Keys
from signoff.runtime.leases import Leases
from signoff.runtime.limits import Limits
from signoff.runtime.logs import Logs
from signoff.runtime.models import Models
from signoff.runtime.pools import Pools
from signoff.runtime.prices import PriceList
from signoff.runtime.reservations import Rooms
from signoff.runtime.response_cache import Answers
from signoff.runtime.streams import Streams
from signoff.runtime.watcher import Waits
from signoff.store import Store
from signoff.transport import Transport


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers that verbs go by; each is a setting."""

    lease_seconds: float = 15
    heartbeat_seconds: float = 5
    sweep_seconds: float = 2
    now_attempts: int = 3
    later_attempts: int = 5
    backoff: Backoff = Backoff()
    hold_seconds: float = 540
    keep_alive_seconds: float = 10
    log_after_seconds: float = 1
    log_before_answer: bool = False
    policy: Policy = Policy()
    coalesce: bool = False
    retention_days: float | None = None
    reach: Reach
    webhook_waits_seconds: Sequence[float] = ()
    webhook_secrets: Sequence[Secret] = ()
    redis_prefix: str | None = None
    cache_shared: bool = False
    model_share: float = 0.75
    max_body_bytes: int = 20 * 1024 * 1024


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """The parts. `clock` gives microseconds since 1970, `dice` a number in [0, 1), `new_secret` 32 base62 letters."""

    store: Store
    broker: Broker
    engines: Mapping[str, Engine]
    couriers: Mapping[DeliveryKind, Courier]
    models: Models
    prices: PriceList
    compositions: Compositions
    functions: Functions
    pools: Pools
    keys: Keys
    callers: Callers
    streams: Streams
    leases: Leases
    limits: Limits
    rooms: Rooms
    waits: Waits
    in_flight: InFlight
    answers: Answers
    logs: Logs
    background: Background
    transport_to: Callable[[Stream], Transport]
    vault: Vault
    rules: Rules
    actor: str
    clock: Callable[[], int]
    new_id: Callable[[], str]
    new_secret: Callable[[], str]
    dice: Callable[[], float]
