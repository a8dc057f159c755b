"""Cache of what each look for the next answer to review needs, cleared when users or queues change."""

from typing import TypeVar

from cachetools import LRUCache

from signoff.accounts import People
from signoff.reviews import ReviewQueues

K = TypeVar("K")
V = TypeVar("V")
MAX_REVIEWERS = 10_000


class ReviewQueueCache:
    """Queues of reviewers by email; and by id, emails of users, and which of them are the only reviewers."""

    def __init__(self, people: People, queues: ReviewQueues) -> None:
        self._people = people
        self._queues = queues
        self._generation = 0
        self._queues_of: LRUCache[str, list[str]] = LRUCache(MAX_REVIEWERS)
        self._is_alone: LRUCache[int, bool] = LRUCache(MAX_REVIEWERS)
        self._emails: LRUCache[int, str] = LRUCache(MAX_REVIEWERS)

    async def queues_of(self, email: str) -> list[str]:
        """Return the names of the queues that a reviewer belongs to, in alphabetical order."""
        if (known := self._queues_of.get(email)) is not None:
            return known
        generation = self._generation
        return self._keep(self._queues_of, email, await self._queues.of_member(email), generation)

    async def is_only_reviewer(self, user_id: int) -> bool:
        """Return True if no other user may review."""
        if (known := self._is_alone.get(user_id)) is not None:
            return known
        generation = self._generation
        return self._keep(self._is_alone, user_id, not await self._people.has_other_reviewer(user_id), generation)

    async def email_of(self, user_id: int) -> str | None:
        """Return the email of a user who has asked for answers; None if there is no such user."""
        if (known := self._emails.get(user_id)) is not None:
            return known
        generation = self._generation
        user = await self._people.user_by_id(user_id)
        return None if user is None else self._keep(self._emails, user_id, user.email, generation)

    def invalidate(self) -> None:
        """Clear the cache."""
        self._generation += 1
        for each in (self._queues_of, self._is_alone, self._emails):
            each.clear()

    def _keep(self, cache: LRUCache[K, V], key: K, value: V, generation: int) -> V:
        if generation == self._generation:  # otherwise the value may be out of date
            cache[key] = value
        return value
