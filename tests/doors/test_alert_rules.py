"""The alert rules and the dashboard in `deploy/observability`, held against the metrics of a live server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser as promql
import pytest
import yaml

from doors.test_metrics import CHATS, TOKEN, scrape
from signoff.core.metrics import METRICS
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
}


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
    assert used - names == set()


def test_each_label_of_the_rules_and_the_dashboard_is_one_of_its_metric() -> None:
    unknown = list[tuple[str, str]]()
    for expression in expressions():
        for selector in selectors(expression):
            metric = DEFINED.get(re.sub(r"_(bucket|sum|count)$", "", selector.name or ""))
            if metric is None:  # of the process, from the client library
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


def test_an_invalid_expression_is_noticed() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        selectors("sum by (model (signoff_leases)")
