"""Turns of users: workers claim the same number of jobs from each user that waits."""

import msgspec

MAX_USERS_OF_CLAIM = 8
# The anonymous caller and the messages of streams have ids of their own, 0 and -1.
BEFORE_ALL_USERS = -2


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The place of a worker in the order of users, and the jobs that it passes over in its next claim."""

    after_user: int = BEFORE_ALL_USERS
    """Owner of the last job that it claimed; BEFORE_ALL_USERS before the first claim."""
    full_models: tuple[str, ...] = ()
    """Models whose jobs are passed over."""
    full_users: tuple[int, ...] = ()
    """Users whose jobs are passed over."""


FIRST_TURN = Turn()
