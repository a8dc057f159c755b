"""Tables from the figures of the benchmarks: gateways, queues, and the comparison with another commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import check
import gateway_tables
import queue_tables
import result
from gateway_tables import spread
from process_tree import descendants

TITLES = {
    "direct": ("the mock", ""),
    "nginx": ("nginx", "log"),
    "portkey": ("Portkey", "log"),
    "signoff": ("Signoff", "nothing"),
}
REPORT = {
    "versions": {"direct": "", "nginx": "1.2", "signoff": "abc"},
    "missing": ["portkey"],
    "memory_mb": {"nginx": 5.4, "signoff": 90.6},
}


def figure(number: int, gateway: str, rate: float, **others: Any) -> dict[str, Any]:
    """Return the figure of a turn."""
    fields = {"scenario": "miss", "cpu_us": 100.0, "answers": 10, "due": 10, "failures": 0}
    latencies = {"first_ms": 1.0, "p50_ms": 2.0, "p99_ms": 3.0}
    return {"round": number, "gateway": gateway, "rate": rate, **fields, **latencies, **others}


def table(figures: list[dict[str, Any]], title: str) -> dict[str, list[str]]:
    """Return the rows of a table by the name of their gateway."""
    [wanted] = [each for each in gateway_tables.tables(REPORT, figures, TITLES) if each["title"] == title]
    assert {len(row) for row in wanted["rows"]} == {len(wanted["columns"])}
    return {row[0]: row[1:] for row in wanted["rows"]}


def test_a_spread_is_the_median_with_the_least_and_the_greatest() -> None:
    assert spread([3000.4, 1000, 2000]) == "2,000 (1,000–3,000)"
    assert spread([0.1234], 2) == "0.12"


def test_the_first_table_says_what_each_gateway_does_not_do_and_which_are_missing() -> None:
    rows = table([], "Gateways")
    assert rows["nginx 1.2"] == ["5", "log"]
    assert rows["the mock"] == ["–", "–"]
    assert rows["Portkey"] == ["–", "not installed, so not in the run"]


def test_a_ratio_is_formed_within_each_round() -> None:
    figures = [figure(1, "nginx", 100), figure(2, "nginx", 10), figure(1, "signoff", 50), figure(2, "signoff", 8)]
    assert table(figures, "New prompts, 64 connections")["Signoff"][1] == "0.650 (0.500–0.800)"


def test_an_answer_from_the_cache_is_compared_with_nginx_that_asks_the_model() -> None:
    figures = [figure(1, "nginx", 100), figure(1, "signoff", 50), figure(1, "signoff", 200, scenario="hit")]
    assert table(figures, "New prompts, 64 connections")["Signoff, answered from its cache"][1] == "2.000"


def test_a_run_without_nginx_has_no_ratios() -> None:
    assert table([figure(1, "signoff", 50)], "New prompts, 64 connections")["Signoff"][1] == "–"


def test_failures_stand_beside_the_name() -> None:
    figures = [figure(1, "signoff", 50, failures=2, due=1000), figure(2, "signoff", 50, failures=1, due=500)]
    assert [*table(figures, "New prompts, 64 connections")] == ["Signoff (3 of 1,500 failed)"]


def test_a_gateway_without_an_answer_has_no_latency() -> None:
    figures = [figure(1, "signoff", 0, p50_ms=0, p99_ms=0)]
    assert table(figures, "New prompts, 64 connections")["Signoff"][-2:] == ["–", "–"]


def test_latency_at_a_fixed_rate_is_that_which_the_gateway_adds() -> None:
    figures = [
        figure(1, "direct", 900, scenario="rate", p50_ms=0.1, p99_ms=0.5, cpu_us=None),
        figure(1, "signoff", 899, scenario="rate", p50_ms=1.1, p99_ms=2.0),
    ]
    rows = table(figures, "900 requests/s, whatever the answers take")
    assert rows["Signoff"] == ["1.10", "2.00", "1.00", "1.50", "100"]
    assert rows["the mock"][-1] == "–"


def test_a_gateway_that_does_not_reach_the_rate_has_no_latency() -> None:
    rows = table([figure(1, "signoff", 128, scenario="rate")], "900 requests/s, whatever the answers take")
    assert rows["Signoff"] == ["only 128/s", "–", "–", "–", "100"]


def test_tables_without_figures_are_left_out() -> None:
    assert [each["title"] for each in gateway_tables.tables(REPORT, [], TITLES)] == ["Gateways"]


def test_a_queue_is_compared_with_celery_in_the_same_round() -> None:
    def turn(number: int, system: str, steady: float) -> dict[str, Any]:
        others = {"accepted": 1000.0, "backlog": 500.0, "cpu_us": 900.0, "idle_p50_ms": 4.0, "idle_p99_ms": 9.0}
        return {"round": number, "system": system, "steady": steady, **others}

    figures = [turn(1, "celery", 100), turn(2, "celery", 50), turn(1, "signoff", 200), turn(2, "signoff", 200)]
    report = {
        "versions": {"celery": "5", "signoff": "abc"},
        "missing": ["awa"],
        "services": {"Redis": "7"},
        "jobs": 2000,
    }
    titles = {"celery": ("Celery", "messages"), "signoff": ("Signoff", "rows"), "awa": ("Awa", "rows")}
    systems, jobs = queue_tables.tables(report, figures, titles)
    assert [row[0] for row in systems["rows"]] == ["Celery 5", "Signoff abc", "Awa", "Redis 7"]
    assert jobs["title"] == "2,000 jobs"
    assert jobs["rows"][0][2] == "1.00 (1.00–1.00)"
    assert jobs["rows"][1][:3] == ["Signoff", "200 (200–200)", "3.00 (2.00–4.00)"]


def test_a_report_has_a_line_for_each_figure(tmp_path: Path) -> None:
    report = {"date": "2026-11-30", "tables": [{"rows": [["a"]]}], "figures": [{"round": 1}, {"round": 2}]}
    result.write(tmp_path / "new" / "report.json", report)
    text = (tmp_path / "new" / "report.json").read_text()
    assert json.loads(text) == report
    assert '\n  {"round": 1},\n  {"round": 2}\n' in text


def costs(load: str, base: list[float], own: list[float]) -> list[tuple[str, str, float]]:
    """Return the costs of turns that alternate between the base and this checkout."""
    return [(load, *each) for pair in zip(base, own, strict=True) for each in zip(("base", "own"), pair, strict=True)]


@pytest.mark.parametrize(
    ("base", "own", "ratio", "holds"),
    [
        ([100, 100, 100], [110, 110, 110], 1.1, True),
        ([100, 100, 100], [111, 111, 111], 1.11, False),
        ([100, 200, 100], [105, 210, 300], 1.05, True),
        ([100, 100, 100], [50, 50, 50], 0.5, True),
    ],
)
def test_a_call_may_cost_a_tenth_more_than_in_the_base(
    base: list[float], own: list[float], ratio: float, holds: bool
) -> None:
    [verdict] = check.verdicts(costs("miss", base, own))
    assert verdict.ratio == pytest.approx(ratio)
    assert verdict.holds is holds


def test_each_load_has_a_verdict_and_a_row() -> None:
    comparisons = check.verdicts([*costs("miss", [1000], [2000]), *costs("hit", [1000], [1000])])
    assert [(each.load, each.holds) for each in comparisons] == [("miss", False), ("hit", True)]
    shown = check.table_of(comparisons, "instructions", "abc", "def")
    assert shown["rows"] == [["miss", "1", "2", "2.00", "NO"], ["hit", "1", "1", "1.00", "yes"]]


def test_the_instructions_of_a_dump_are_its_total() -> None:
    dump = "version: 1\nevents: Ir\nfn=(1) main\n16 400\n\ntotals: 899439680\n"
    assert check.instructions(dump) == 899_439_680
    assert check.instructions("version: 1\n") == 0


def test_the_processes_of_a_tree_are_those_that_descend_from_its_root() -> None:
    stats = {1: ["S", "0"], 10: ["S", "1"], 11: ["S", "10"], 12: ["S", "11"], 20: ["S", "1"]}
    assert descendants(10, stats) == [10, 11, 12]
    assert descendants(30, stats) == []
