"""Repeat a test once that failed beside other processes, and show its first failure.

Thousands of tests run real servers, browsers and processes, on machines that do other work too, so now and then one of
them fails by its timing alone. A test that fails twice fails. The first failure is shown whole even if the second run
passes, because it can be a fault of the product that depends on timing. With `--once`, every failure counts.
"""

import pytest

NEVER_REPEATED = ("long", "law")
BESIDE_OTHERS = ("services", "processes", "server")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--once`."""
    parser.addoption(
        "--once", action="store_true", help="repeat no test that failed, to find those that fail by chance"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let tests beside other processes be repeated, by the plug-in `pytest-rerunfailures`."""
    if config.getoption("once"):
        return
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if not marks.isdisjoint(BESIDE_OTHERS) and marks.isdisjoint(NEVER_REPEATED):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the first failure of each test that passed when it was repeated."""
    failed = {report.nodeid for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, [])}
    repeated = [report for report in terminalreporter.stats.get("rerun", []) if report.nodeid not in failed]
    if repeated:
        terminalreporter.section("first failures of tests that passed when they were repeated")
    for report in repeated:
        terminalreporter.section(report.nodeid, sep="_")
        terminalreporter.write_line(report.longreprtext)
