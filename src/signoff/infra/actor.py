"""The actor of the changes that this task makes, for the audit log.

It is a context variable, so that no change can be recorded without it, whichever operation a door or a command calls.
Only the code that identifies callers sets it. A store reads it when a method is called, as its transaction runs later.
"""

from contextvars import ContextVar

from signoff.core.audit import Actor

_ACTOR: ContextVar[Actor] = ContextVar("actor", default=Actor())  # noqa: B039 -- Actor is frozen


def act_as(actor: Actor) -> None:
    """Make `actor` the actor of all changes of this task, and of the tasks that it starts from now on."""
    _ACTOR.set(actor)


def current_actor() -> Actor:
    """Return the actor of this task; `system` unless it was set."""
    return _ACTOR.get()
