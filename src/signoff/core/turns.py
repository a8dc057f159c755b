"""Turns of queued jobs, by which users share the workers fairly.

This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), in which each job counts the same.
"""


def next_turn(last: int | None, running: int | None, first: int | None) -> int:
    """Return the turn of a new job in the queue of its priority, so that users share the workers fairly.

    A user's jobs get successive turns, and the first of them the turn that the workers have reached. So a new user's
    job waits for one job of each other user, and not for all of them.

    Args:
        last: The last turn of the user's jobs that wait; None if none waits.
        running: The last turn of the jobs that are performed; None if there are none.
        first: The first turn of all jobs that wait; None if none waits.
    """
    reached = running if running is not None else first or 0
    return reached if last is None else max(reached, last + 1)
