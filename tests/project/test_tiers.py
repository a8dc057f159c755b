"""The markers of a test, which follow from the code that it uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core.reviews.test_policy import test_without_a_word_nothing_is_held_and_nothing_leaves_by_itself as pure
from plugins.tiers import SERVING, STARTING, names_a_service, words_of


def run() -> None:
    subprocess.run([sys.executable, "--version"], check=True)


class Runner:
    """An object that starts a process in a method."""

    def start(self) -> None:
        run()


def test_code_that_starts_a_process_is_found_through_functions_and_classes() -> None:
    def through() -> None:
        Runner().start()

    assert not STARTING.isdisjoint(words_of(run))
    assert not STARTING.isdisjoint(words_of(through))
    assert STARTING.isdisjoint(words_of(pure))


def test_code_that_runs_a_server_is_found() -> None:
    from support.live_server import live

    assert not SERVING.isdisjoint(words_of(live))
    assert SERVING.isdisjoint(words_of(pure))


@pytest.mark.parametrize(
    ("value", "names"),
    [("postgres and redis", True), ("mqtt_url", True), ("sqlite", False), ("memory", False), (7, False)],
)
def test_a_parameter_names_a_service_or_none(value: object, names: bool) -> None:
    assert names_a_service(value) is names
