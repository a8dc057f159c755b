"""Arrival of the request that this task serves."""

from contextvars import ContextVar

ARRIVED_AT: ContextVar[float | None] = ContextVar("arrived_at", default=None)
"""Time at which the head of the request was complete, in seconds of `time.perf_counter`; None outside of a request."""
