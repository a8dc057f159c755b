"""`deploy/compose.yaml`: it is valid, and each service has what it needs to start, to be restarted, and to stop."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from deploy.paths import DEPLOY, HOLD_SECONDS, MARGIN_SECONDS, ROOT
from signoff.setting_sources import unknown_variables
from signoff.settings import Settings

OURS = {"migrate", "api-1", "api-2", "worker"}
SECRETS = dict.fromkeys(("POSTGRES_PASSWORD", "RABBITMQ_PASSWORD", "REDIS_PASSWORD", "SIGNOFF_SECRET_KEY"), "secret")
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def document(**variables: str) -> dict[str, Any]:
    """Return the file as Compose reads it: with `variables`, or the defaults of those that are missing."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        assert kind == "-" or name in variables, f"{name}: {rest}"
        return variables.get(name, rest)

    text = VARIABLE.sub(value, (DEPLOY / "compose.yaml").read_text()).replace("$$", "$")
    return yaml.load(text, yaml.CSafeLoader)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Return the services, by name."""
    return document(**SECRETS)["services"]


def test_the_file_is_valid_and_names_only_what_it_defines(services: dict[str, Any]) -> None:
    PyCompose.from_json(json.dumps(document(**SECRETS))).validate()
    with pytest.raises(ValueError, match="read_onl"):
        PyCompose.from_json(json.dumps({"services": {"x": {"image": "x", "read_onl": True}}}))
    mounted = [volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    assert [path for path in mounted if path.startswith(".") and not (DEPLOY / path).exists()] == []
    build = services["api-1"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


def test_every_secret_must_be_given_and_make_up_makes_it() -> None:
    required = {name for name, kind, _ in VARIABLE.findall((DEPLOY / "compose.yaml").read_text()) if kind == "?"}
    generated = set(re.findall(r"(\w+_(?:PASSWORD|KEY))=%s", (DEPLOY / "compose.mk").read_text()))
    assert required == generated == SECRETS.keys()
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_there_are_two_servers_and_three_workers_behind_one_proxy(services: dict[str, Any]) -> None:
    assert [services[name]["command"] for name in ("api-1", "api-2", "worker")] == [
        ["serve", "--no-work"],
        ["serve", "--no-work"],
        ["work"],
    ]
    assert services["worker"]["deploy"]["replicas"] == 3
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]
    upstream = (DEPLOY / "nginx" / "upstream.compose.conf").read_text()
    assert re.findall(r"^\s+server (\S+) ", upstream, re.MULTILINE) == ["api-1:8000", "api-2:8000"]


def test_a_service_starts_when_what_it_needs_is_there(services: dict[str, Any]) -> None:
    waits = {
        name: {(other, each["condition"].removeprefix("service_")) for other, each in service["depends_on"].items()}
        for name, service in services.items()
        if "depends_on" in service
    }
    ready = {("migrate", "completed_successfully"), ("rabbitmq", "healthy"), ("redis", "healthy")}
    assert waits == {
        "migrate": {("postgres", "healthy")},
        "api-1": ready,
        "api-2": ready,
        "worker": ready,
        "nginx": {("api-1", "healthy"), ("api-2", "healthy")},
    }
    # what is waited for has a health check
    others = {name for each in waits.values() for name, condition in each if condition == "healthy"}
    assert [name for name in others if "test" not in services[name].get("healthcheck", {})] == []
    # and that of the API is the image's
    [command] = re.findall(r"^HEALTHCHECK .*\\\n +CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert services["api-1"]["healthcheck"]["test"] == ["CMD", *json.loads(command)]
    assert services["migrate"]["restart"] == "no"
    assert {service["restart"] for name, service in services.items() if name != "migrate"} == {"unless-stopped"}


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_the_server_and_no_proxy(status: int, exit_code: int, services: dict[str, Any]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *values: Any) -> None: ...

    [_, *command] = services["api-1"]["healthcheck"]["test"]
    # it runs every ten seconds
    assert "python" not in command
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [word.replace("/8000", f"/{server.server_port}") for word in command]
        environment = {"PATH": os.defpath, "http_proxy": "http://127.0.0.1:1"}
        result = subprocess.run(command, env=environment, check=False, capture_output=True)
        server.shutdown()
    assert result.returncode == exit_code, result.stderr


def test_prometheus_reads_the_metrics_of_each_container(services: dict[str, Any]) -> None:
    assert document(**SECRETS)["networks"]["metrics"] == {"internal": True}
    [job] = yaml.safe_load((DEPLOY / "observability" / "prometheus.compose.yml").read_text())["scrape_configs"]
    [source] = job["dns_sd_configs"]
    # several containers of one service have one name, with an address each
    assert source["names"] == ["api-1", "api-2", "worker"]
    for name in source["names"]:
        assert "metrics" in services[name]["networks"]
        assert services[name]["environment"]["SIGNOFF_METRICS_HOST"] == "0.0.0.0"
        assert services[name]["environment"]["SIGNOFF_METRICS_PORT"] == str(source["port"])
    assert "metrics" not in services["nginx"]["networks"]


def test_a_restore_begins_without_the_volumes_that_have_data_or_a_password() -> None:
    guide = (ROOT / "docs" / "how-to" / "back-up-and-restore.md").read_text()
    [removed] = re.findall(r"^docker volume rm (.*)$", guide, re.MULTILINE)
    volumes = {f"signoff_{name}" for name in document(**SECRETS)["volumes"]}
    assert set(removed.split()) == volumes - {"signoff_redis"}


def test_a_stopping_container_is_not_killed_while_callers_wait_for_reviews(services: dict[str, Any]) -> None:
    for name in OURS:
        drain = int(services[name]["environment"]["SIGNOFF_DRAIN_SECONDS"])
        assert drain > HOLD_SECONDS
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > drain + MARGIN_SECONDS


def test_containers_have_no_rights_that_they_do_not_need(services: dict[str, Any]) -> None:
    for name in (*OURS, "nginx"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
    # nginx reaches neither the database nor the broker
    assert services["nginx"]["networks"] == ["proxy"]
    assert [services[name]["networks"] for name in ("postgres", "rabbitmq", "redis")] == [["services"]] * 3


def test_redis_does_not_run_as_root(services: dict[str, Any]) -> None:
    # the image's entrypoint gives up the rights of root for this command alone
    assert services["redis"]["command"][0] == "redis-server"
    assert "entrypoint" not in services["redis"]


def test_functions_of_an_operator_outlive_the_containers(services: dict[str, Any]) -> None:
    for name in ("api-1", "api-2", "worker"):
        volumes = [volume.partition(":")[2] for volume in services[name]["volumes"]]
        assert Path(services[name]["environment"]["SIGNOFF_FUNCTIONS_DIR"]).parent in map(Path, volumes)


def test_each_setting_exists_and_its_value_is_valid(services: dict[str, Any]) -> None:
    for name in OURS:
        variables = services[name]["environment"]
        assert unknown_variables(variables, Settings.model_fields) == []
        values = {
            key.removeprefix("SIGNOFF_").lower(): value
            for key, value in variables.items()
            if key != "FORWARDED_ALLOW_IPS"
        }
        assert Settings(**values).database_url == "postgresql://signoff:secret@postgres/signoff"
