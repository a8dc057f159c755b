"""The number of connections to PostgreSQL that the guide names."""

from __future__ import annotations

import inspect
import math
import re

import yaml

from deploy.paths import DEPLOY, ROOT
from signoff.core.postgres_address import parse_postgres_address
from signoff.stores import postgres

GUIDE = (ROOT / "docs" / "how-to" / "deploy.md").read_text().partition("## Count the connections")[2]


def test_the_guide_counts_the_connections_of_a_process_and_of_the_chart() -> None:
    readers = inspect.signature(postgres.Postgres).parameters["pool_size"].default
    engines = postgres._Engines(parse_postgres_address("postgresql://h/d"), readers, is_pooled=False)
    # and one of the feed of changes
    of_process = sum(engine.pool.size() for engine in engines.all()) + 1
    assert f"up to {of_process} connections: {readers} for reads" in GUIDE
    values = yaml.safe_load((DEPLOY / "helm" / "signoff" / "values.yaml").read_text())
    api, workers = values["api"]["replicas"], values["worker"]["replicas"]
    api_maximum, workers_maximum = values["api"]["autoscaling"]["maxReplicas"], values["keda"]["maxReplicas"]
    # one more API pod, and by Kubernetes' default a quarter more workers
    processes = [
        api + workers,
        api + 1 + workers + math.ceil(workers / 4),
        api_maximum + workers_maximum,
        api_maximum + 1 + workers_maximum + math.ceil(workers_maximum / 4),
    ]
    rows = re.findall(r"\| (\d+) \| (\d+) \|$", GUIDE, re.MULTILINE)
    assert rows[: len(processes)] == [(str(number), str(number * of_process)) for number in processes]
