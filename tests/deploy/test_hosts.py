"""The files for hosts without containers: units of systemd, and nginx in front of the API processes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.paths import CALL_SECONDS, DEPLOY, HOLD_SECONDS, MARGIN_SECONDS, MAX_FILE_BYTES, ROOT
from signoff.setting_sources import unknown_variables
from signoff.settings import Settings

SYSTEMD, NGINX = DEPLOY / "systemd", DEPLOY / "nginx"
GUIDE = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
UNITS = sorted(SYSTEMD.glob("*.service"))


def directives(path: Path) -> dict[str, str]:
    """Return the directives of a unit; of one that is repeated, the last."""
    return dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))


def setting(name: str) -> float:
    """Return a number of the settings file of the units."""
    return float(directives(SYSTEMD / "signoff.env")[name])


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_with_few_rights(path: Path) -> None:
    unit = directives(path)
    assert unit["User"] == "signoff"
    assert (unit["ProtectSystem"], unit["NoNewPrivileges"], unit["CapabilityBoundingSet"]) == ("strict", "yes", "")
    assert unit["ExecStart"].startswith("/opt/signoff/bin/signoff ")


@pytest.mark.parametrize("name", ["signoff@.service", "signoff-worker@.service"])
def test_a_stopping_unit_is_not_killed_while_callers_wait_for_reviews(name: str) -> None:
    drain_seconds = setting("SIGNOFF_DRAIN_SECONDS")
    assert drain_seconds > HOLD_SECONDS
    unit = directives(SYSTEMD / name)
    assert float(unit["TimeoutStopSec"]) > drain_seconds + MARGIN_SECONDS
    assert unit["Requires"] == "signoff-migrate.service"
    assert unit["Requires"] in unit["After"]


def test_the_settings_of_the_units_exist() -> None:
    assert unknown_variables(directives(SYSTEMD / "signoff.env"), Settings.model_fields) == []


def test_the_files_are_installed_where_no_folder_of_theirs_exists(tmp_path: Path) -> None:
    commands = [line.strip() for line in GUIDE.splitlines() if line.strip().startswith("install ")]
    (tmp_path / "etc").mkdir()
    for command in commands:
        subprocess.run(["sh", "-c", command.replace(" /etc/", f" {tmp_path}/etc/")], cwd=ROOT, check=True)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    units = {f"etc/systemd/system/{path.name}" for path in (*UNITS, SYSTEMD / "signoff.target")}
    nginx = {"etc/nginx/conf.d/signoff.conf", "etc/nginx/conf.d/upstream.conf"}
    assert files == {*units, *nginx, "etc/sysusers.d/signoff.conf", "etc/signoff/signoff.env"}
    assert (tmp_path / "etc/signoff/signoff.env").stat().st_mode & 0o777 == 0o600


def test_the_guide_makes_the_accounts_of_the_settings_file() -> None:
    settings = directives(SYSTEMD / "signoff.env")
    database, broker = (urlsplit(settings[f"SIGNOFF_{name}_URL"]) for name in ("DATABASE", "AMQP"))
    assert f"CREATE ROLE {database.username} LOGIN PASSWORD '{database.password}'" in GUIDE
    assert f"CREATE DATABASE {database.path[1:]} OWNER {database.username}" in GUIDE
    assert f"rabbitmqctl add_user {broker.username} {broker.password}" in GUIDE
    assert f"rabbitmqctl set_permissions {broker.username} " in GUIDE


@pytest.mark.parametrize(("guide", "commands"), [("deploy", 1), ("upgrade", 1), ("back-up-and-restore", 2)])
def test_commands_of_the_guides_have_the_settings_and_the_account_of_the_units(guide: str, commands: int) -> None:
    text = (ROOT / "docs" / "how-to" / f"{guide}.md").read_text()
    lines = re.findall(r"systemd-run (?:.*\\\n)+.*", text)
    unit = directives(SYSTEMD / "signoff-migrate.service")
    wanted = [
        f"--uid={unit['User']}",
        f"--working-directory={unit['WorkingDirectory']}",
        f"--property=EnvironmentFile={unit['EnvironmentFile']}",
        f"--setenv={unit['Environment'].split()[0]}",
        unit["ExecStart"].split()[0],
    ]
    assert [[word for word in wanted if word not in command.split()] for command in lines] == [[]] * commands


def test_the_target_starts_what_nginx_calls() -> None:
    wanted = re.findall(r"\b(signoff\S*)\.service", (SYSTEMD / "signoff.target").read_text())
    ports = {name.partition("@")[2] for name in wanted if name.startswith("signoff@")}
    upstream = (NGINX / "upstream.conf").read_text()
    assert set(re.findall(r"server 127\.0\.0\.1:(\d+) max_fails=0;", upstream)) == ports
    assert sum(name.startswith("signoff-worker@") for name in wanted) == 3


def test_prometheus_reads_the_metrics_of_each_process() -> None:
    processes = re.findall(r"\bsignoff\S*@\d+\.service", (SYSTEMD / "signoff.target").read_text())
    first = int(setting("SIGNOFF_METRICS_PORT"))
    [job] = yaml.safe_load((DEPLOY / "observability" / "prometheus.yml").read_text())["scrape_configs"]
    # each process takes the first port that is free
    targets = [f"127.0.0.1:{first + number}" for number in range(len(processes))]
    assert job["static_configs"] == [{"targets": targets}]


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.compose.yml"])
def test_the_example_of_prometheus_reads_the_alert_rules(name: str) -> None:
    example = yaml.safe_load((DEPLOY / "observability" / name).read_text())
    [rules] = example["rule_files"]
    assert (DEPLOY / "observability" / rules).is_file()


def test_nginx_waits_longer_than_a_call_and_a_review_and_passes_on_each_event_at_once() -> None:
    options = dict(re.findall(r"^\s+(\w+) (.+);$", (NGINX / "signoff.conf").read_text(), re.MULTILINE))
    assert int(options["proxy_read_timeout"].removesuffix("s")) > max(CALL_SECONDS, HOLD_SECONDS)
    assert (options["proxy_buffering"], options["proxy_request_buffering"]) == ("off", "on")
    # a form around a file
    assert int(options["client_max_body_size"].removesuffix("m")) * 1024 * 1024 > MAX_FILE_BYTES
    # a request that may have an effect is not sent twice
    assert options["proxy_next_upstream"].split() == ["error", "timeout"]
