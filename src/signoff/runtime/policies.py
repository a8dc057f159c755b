"""Cache of named review policies: those that apply, and the versions that jobs were submitted under."""

from cachetools import LRUCache

from signoff.catalog import Policies
from signoff.core.reviews.compiled import CompiledPolicy, PolicyIndex
from signoff.core.reviews.policy import PolicyVersion
from signoff.core.reviews.rules import MAX_POLICIES
from signoff.runtime.snapshot import Snapshot


class PolicyCache:
    """Compiled policies. The cached ones apply while the store is unavailable; without any, the methods raise."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies
        self._snapshot = Snapshot(self._read)
        self._versions: LRUCache[PolicyVersion, CompiledPolicy] = LRUCache(2 * MAX_POLICIES)

    @property
    def is_empty(self) -> bool:
        """True if it is known that no policy applies to anything, so that nothing needs a look-up."""
        index = self._snapshot.known
        return index is not None and not index

    async def index(self) -> PolicyIndex:
        """Return the policies that apply."""
        return await self._snapshot.get()

    async def version(self, version: PolicyVersion) -> CompiledPolicy | None:
        """Return a version, also of a policy that was changed or deleted; None if the store has lost it."""
        if version not in self._versions:
            policy = await self._policies.get(version.name, version.version)
            if policy is None:
                return None
            self._versions[version] = CompiledPolicy(policy, is_stored=True)
        return self._versions[version]

    def invalidate(self) -> None:
        """Look the applying policies up again; versions never change."""
        self._snapshot.invalidate()

    async def _read(self) -> PolicyIndex:
        compiled = [await self.version(each) for each in await self._policies.current()]
        return PolicyIndex([each for each in compiled if each is not None])
