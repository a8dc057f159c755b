"""Services: the frozen dependency container that every operation takes first. It has no methods."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from signoff.blob import Blobs
from signoff.broker import Broker
from signoff.core.allow_list import AllowList
from signoff.core.delivery import DeliveryKind
from signoff.core.headers import DEFAULT_HEADERS
from signoff.core.job import Job
from signoff.core.retry import Backoff
from signoff.core.reviews.policy import JobPolicy
from signoff.core.signing import Secret
from signoff.core.stream import Stream
from signoff.deliverer import Deliverer, Guardrail, Mailer
from signoff.engine import Engine
from signoff.infra.proxies import NO_PROXIES, Proxies
from signoff.infra.tracing import Tracer
from signoff.infra.vault import Vault
from signoff.runtime.background import Background
from signoff.runtime.backlogs import Backlogs
from signoff.runtime.caller_leases import CallerLeases
from signoff.runtime.callers import CallerCache
from signoff.runtime.file_sizes import FileSizes
from signoff.runtime.functions import FunctionRegistry
from signoff.runtime.identity_provider import IdentityProvider
from signoff.runtime.inflight import InflightCalls
from signoff.runtime.keys import UpstreamKeyCache
from signoff.runtime.leases import Leases
from signoff.runtime.library import LibraryCache
from signoff.runtime.limits import LimitCache
from signoff.runtime.logs import ModelLogWriter
from signoff.runtime.metrics import Metrics
from signoff.runtime.missing_paths import MissingPaths
from signoff.runtime.models import ModelCache
from signoff.runtime.open_calls import OpenCalls
from signoff.runtime.passes import Passes
from signoff.runtime.passwords import PasswordHasher
from signoff.runtime.policies import PolicyCache
from signoff.runtime.pools import EndpointPools
from signoff.runtime.prices import PriceCache
from signoff.runtime.reservations import Reservations
from signoff.runtime.response_cache import ResponseCache
from signoff.runtime.review_queues import ReviewQueueCache
from signoff.runtime.run_sizes import RunSizes
from signoff.runtime.scrape import ScrapeCache
from signoff.runtime.shutdown import Shutdown
from signoff.runtime.streams import StreamCache
from signoff.runtime.watcher import JobWatcher
from signoff.store import Store
from signoff.transport import Transport


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that operations use. Each field is the setting of its name, unless its description says otherwise."""

    lease_seconds: float = 15
    """Time for which a worker or a waiting call holds a job without renewing its lease."""
    heartbeat_seconds: float = 5
    """Interval at which leases and reservations are renewed."""
    sweep_seconds: float = 2
    """Interval of the sweeper."""
    now_attempts: int = 3
    """Attempts at a model for a waiting call."""
    later_attempts: int = 5
    """Attempts at a model for a queued job."""
    backoff: Backoff = Backoff()
    """Waits between attempts (settings `backoff_seconds`, `backoff_ceiling_seconds`)."""
    hold_seconds: float = 280
    """Time for which a waiting call waits for a held answer."""
    stream_hold_seconds: float = 3600
    """Time for which a streamed call, which gets comments meanwhile, waits for a held answer."""
    keep_alive_seconds: float = 10
    """Interval of comments on an idle event stream."""
    log_after_seconds: float = 1
    """A waiting call that runs longer is recorded before it ends."""
    log_before_answer: bool = False
    """Record a waiting call before its answer is sent."""
    policy: JobPolicy = JobPolicy()
    """Review policy of a job whose model and door have none."""
    release_after_seconds: float = 5
    """Time for which a verdict of the desk can be undone before it takes effect."""
    allow_self_review: bool | None = None
    """True to let reviewers decide on their own requests; None: only while there is no other reviewer."""
    public_url: str | None = None
    """Address of this server for links in messages; None for messages without links."""
    coalesce: bool = False
    """Share one upstream call among equal requests of a user."""
    retention_seconds: float | None = None
    """Age at which ended jobs are deleted (setting `retention_days`); None keeps them."""
    allow_list: AllowList
    """Addresses beside public ones that webhooks may reach (setting `webhook_allow`)."""
    webhook_waits_seconds: Sequence[float] = ()
    """Waits between attempts of a webhook."""
    webhook_secrets: Sequence[Secret] = ()
    """Secrets that sign webhooks without a secret of their own."""
    redis_prefix: str | None = None
    """Prefix of result keys in Redis; None without Redis."""
    cache_shared: bool = False
    """Give cached answers to every user, not only to the one who asked first."""
    pass_headers: tuple[str, ...] = DEFAULT_HEADERS
    """Names of callers' headers that pass on to models without a list of their own."""
    model_share: float = 0.75
    """Share of a worker's slots that one model may take."""
    user_share: float = 0.9
    """Share of a worker's slots that one user's jobs may take."""
    password_sign_in: bool = True
    """Let people sign in by a password."""
    max_body_bytes: int = 20 * 1024 * 1024
    """Largest request body or message."""
    max_file_bytes: int = 200 * 1024 * 1024
    """Largest file."""


class Adapters(msgspec.Struct, frozen=True, kw_only=True):
    """Clients of what is outside this process."""

    broker: Broker
    """Sender and receiver of wake-ups for workers."""
    blobs: Blobs
    """Store of the contents of files."""
    engines: Mapping[str, Engine]
    """Engines by the kind of model that they answer for."""
    deliverers: Mapping[DeliveryKind, Deliverer]
    """Delivery adapters by kind of delivery."""
    mailer: Mailer | None = None
    """Mail server for digests of review queues; None without one."""
    transport_to: Callable[[Stream], Transport]
    """Factory of the transport of a stream."""
    vault: Vault
    """Encryption of stored secrets."""
    guardrail: Callable[[], Guardrail] | None = None
    """Function that returns the client for the webhooks of policies; None if there is none."""
    proxies: Proxies = NO_PROXIES
    """Proxies for requests to models."""


class Caches(msgspec.Struct, frozen=True, kw_only=True):
    """Copies of stored rows. Each is invalidated when the store announces a change."""

    models: ModelCache
    """Models by name, those that always exist included."""
    prices: PriceCache
    """Prices of models."""
    library: LibraryCache
    """Prompts and pipelines that were asked for lately."""
    functions: FunctionRegistry
    """Registered functions, loaded from their files."""
    keys: UpstreamKeyCache
    """Upstream keys, decrypted."""
    callers: CallerCache
    """Callers by token."""
    reviewers: ReviewQueueCache
    """Queues of reviewers, and emails of users."""
    streams: StreamCache
    """Streams by name, those of the settings included."""
    limits: LimitCache
    """Limits by user, token and model."""
    policies: PolicyCache
    """Named review policies, compiled."""
    responses: ResponseCache
    """Signed-off answers that may be given again."""


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """State of this process that is not a copy of stored rows."""

    pools: EndpointPools
    """Endpoints of models: load, cooldowns, queues."""
    leases: Leases
    """Leases that this process holds and renews."""
    reservations: Reservations
    """Reservations under limits that this process holds and renews."""
    passes: Passes
    """Passes of error budgets that this process has taken."""
    backlogs: Backlogs
    """Bounds on the unfinished jobs of each user."""
    run_sizes: RunSizes
    """Sizes of the runs that this process performs."""
    file_sizes: FileSizes
    """Sizes of the files of each user, with the uploads to this process."""
    watcher: JobWatcher
    """Watcher that wakes callers who wait for a job to change."""
    caller_leases: CallerLeases
    """Callers who wait for held answers, recorded for the case that this process is killed."""
    missing_paths: MissingPaths
    """Endpoints of APIs that models turned out not to have."""
    open_calls: OpenCalls
    """Calls whose clients wait, which end when their tokens are revoked."""
    inflight_calls: InflightCalls
    """Waiting calls that are not recorded yet, and calls that several callers share."""
    metrics: Metrics
    """Numbers and durations since the start of this process."""
    tracer: Tracer | None = None
    """Maker of spans; None if traces are not configured."""
    scrape: ScrapeCache
    """Gauges from the database, as the latest scrape has read them."""
    logs: ModelLogWriter
    """Writer of the logs of models, in batches."""
    passwords: PasswordHasher
    """Hashes of passwords, made one at a time."""
    identity_provider: IdentityProvider | None = None
    """OpenID Connect provider for signing in; None without one."""
    shutdown: Shutdown
    """State of the stop of this process."""
    background: Background
    """Tasks that outlive the caller who started them."""


class Ids(msgspec.Struct, frozen=True, kw_only=True):
    """Sources of ids, secrets and random numbers."""

    new_id: Callable[[], str]
    """Return a new UUIDv7."""
    new_secret: Callable[[], str]
    """Return 32 random base62 characters."""
    random_float: Callable[[], float]
    """Return a random number in [0, 1)."""
    actor: str
    """The name of this process in events: `worker:HOST:PID`."""


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """All that the operations in `work/` depend on. They take it as their first argument."""

    store: Store
    """The database: jobs, people, models, and everything else that is kept."""
    adapters: Adapters
    """Broker, engines, deliverers, transports, vault."""
    caches: Caches
    """Copies of stored rows."""
    runtime: Runtime
    """In-process state: pools, leases, reservations, calls in flight."""
    ids: Ids
    """Sources of ids, secrets and random numbers."""
    clock: Callable[[], int]
    """Return the current time in microseconds since 1970, UTC."""
    rules: Rules
    """Settings that operations use."""


Perform = Callable[[Services, Job], Awaitable[bytes | None]]
"""Function that answers and settles a leased job, and returns the answer of one that succeeded: `work.perform.perform`,
passed down to avoid circular imports."""
