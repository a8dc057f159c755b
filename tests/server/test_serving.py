"""Files that a serving process may open."""

from __future__ import annotations

import pickle
import resource

import pytest

from signoff.server.serving import OTHER_FILES, allow_connections, uvicorn_options

INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "new_soft"),
    [
        (1024, 524_288, 4096, 4096 + OTHER_FILES),
        (1024, INFINITY, 4096, 4096 + OTHER_FILES),
        (20_000, 20_000, 4096, None),
        (INFINITY, INFINITY, 4096, None),
        (1024, 2048, 2048 - OTHER_FILES, 2048),
        (256, 256, 128, 256),
    ],
)
def test_connections_leave_files_for_all_else(
    soft: int, hard: int, connections: int, new_soft: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = list[tuple[int, int]]()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert allow_connections(4096) == connections
    assert limits == ([] if new_soft is None else [(new_soft, hard)])


def test_the_options_reach_processes_that_are_spawned() -> None:
    copied = pickle.loads(pickle.dumps(uvicorn_options(7, drain_seconds=1)))
    assert copied["http"].keywords["registry"].limits.max_connections == 7
