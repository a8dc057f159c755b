"""The alert rules and the dashboard in `deploy/observability`, held against the metrics of a live server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import accumulate, count, takewhile
from pathlib import Path

import promql_parser as promql
import pytest
import yaml

from doors.test_metrics import CHATS, TOKEN, scrape
from signoff.core.balance import COOLDOWN
from signoff.core.metrics import METRICS
from signoff.core.retry import wait_seconds
from support.live_server import chat, live

pytestmark = pytest.mark.anyio
FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
DEFINED = {metric.name: metric for metric in METRICS}
# Labels that Prometheus adds, and that of a bucket.
ADDED = {"instance", "job", "le"}
ALERTS = {
    "SignoffModelSlow",
    "SignoffQueueStuck",
    "SignoffErrorBudgetSpent",
    "SignoffDeliveriesBacklog",
    "SignoffEventLoopLag",
    "SignoffNoProcess",
    "SignoffProcessDown",
}
# Seconds that a stopping process has; its port for metrics is closed meanwhile.
DRAIN_SECONDS = 300
# The metric that Prometheus adds to each target.
OF_PROMETHEUS = {"up"}


def rules() -> list[dict[str, str]]:
    """Return the alert rules."""
    groups = yaml.safe_load((FOLDER / "prometheus-rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[str]:
    """Yield each expression of the rules and of the dashboard."""
    yield from (rule["expr"] for rule in rules())
    for panel in json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"]:
        yield from (target["expr"].replace("$__rate_interval", "5m") for target in panel.get("targets", ()))


def selectors(expression: str) -> list[promql.VectorSelector]:
    """Return the selectors of an expression. Raises ValueError if it is not valid."""
    of_expression = list[promql.VectorSelector]()

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.MatrixSelector):
            of_expression.append(node.vector_selector)
        elif isinstance(node, promql.VectorSelector):
            of_expression.append(node)
        return True

    promql.walk(promql.parse(expression), visit)
    return of_expression


def family_of(name: str) -> str:
    """Return the name of the metric that a sample belongs to."""
    return re.sub(r"_(bucket|sum|count|total)$", "", name)


async def test_each_metric_of_the_rules_and_the_dashboard_exists_in_a_live_scrape(tmp_path: Path) -> None:
    async with live(tmp_path, metrics_token=TOKEN) as server:
        await server.ask("POST", CHATS, await server.token(), json=chat("hi"))
        names = (await scrape(server)).names
    used = {family_of(selector.name or "") for each in expressions() for selector in selectors(each)}
    assert len(used) > 25
    assert used - names == OF_PROMETHEUS


def test_each_label_of_the_rules_and_the_dashboard_is_one_of_its_metric() -> None:
    unknown = list[tuple[str, str]]()
    for expression in expressions():
        for selector in selectors(expression):
            metric = DEFINED.get(re.sub(r"_(bucket|sum|count)$", "", selector.name or ""))
            if metric is None:  # of the process, from the client library, or of Prometheus
                continue
            matched = {matcher.name for matcher in selector.matchers.matchers}
            grouped = {name for text in re.findall(r"by \(([^)]*)\)", expression) for name in text.split(", ")}
            wrong = (matched | grouped) - {*metric.labels} - ADDED
            unknown += [(expression, name) for name in wrong]
    assert unknown == []


def test_there_is_an_alert_for_each_trouble_that_the_guide_names() -> None:
    names = {rule["alert"] for rule in rules()}
    assert names >= ALERTS
    guide = (FOLDER.parents[1] / "docs" / "how-to" / "observe.md").read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in guide] == []


def test_cooldowns_are_counted_since_each_one_is_too_short_to_be_seen() -> None:
    [rule] = [rule for rule in rules() if rule["alert"] == "SignoffEndpointRests"]
    assert {selector.name for selector in selectors(rule["expr"])} == {"signoff_endpoint_cooldowns_total"}
    assert "for" not in rule
    # an endpoint that always fails, at one process
    tries = takewhile(lambda seconds: seconds < 600, accumulate(wait_seconds(COOLDOWN, n, 1) for n in count(1)))
    assert float(rule["expr"].rpartition(">")[2]) < len([*tries])


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.compose.yml"])
def test_a_target_of_the_example_that_is_down_raises_an_alert_after_a_drain(name: str) -> None:
    [rule] = [rule for rule in rules() if rule["alert"] == "SignoffProcessDown"]
    [selector] = selectors(rule["expr"])
    [matcher] = selector.matchers.matchers
    [job] = yaml.safe_load((FOLDER / name).read_text())["scrape_configs"]
    assert re.fullmatch(matcher.value, job["job_name"])
    assert int(rule["for"].removesuffix("m")) * 60 > DRAIN_SECONDS


def test_an_invalid_expression_is_noticed() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        selectors("sum by (model (signoff_leases)")
