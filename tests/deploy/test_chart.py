"""The Helm chart: Helm renders it, Kubernetes' schemas accept it, and its rules hold."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.paths import CALL_SECONDS, DEPLOY, HOLD_SECONDS, MARGIN_SECONDS, ROOT
from signoff.setting_sources import unknown_variables
from signoff.settings import Settings

PUBLIC = {"public_url": "https://signoff.example.com"}
KUBERNETES = ("1.28", "1.37")
CHART = DEPLOY / "helm" / "signoff"
POOLED = "postgresql+asyncpg://u:p%2B@h:6432/d?pgbouncer=true&sslmode=require&pool_size=3"
SECRET = {"secretKey": "A" * 43 + "=", "databaseUrl": "postgresql://u:p@h/d"}
PLAIN = {"secret": SECRET}
FULL = PLAIN | {
    "secret": SECRET
    | {"databaseUrl": POOLED, "amqpUrl": "amqp://u:p@h/", "redisUrl": "redis://h/0", "metricsToken": "m" * 16},
    "api": {"autoscaling": {"enabled": True}},
    "keda": {"enabled": True},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "tls"},
    "serviceMonitor": {"enabled": True},
    "settings": {"concurrency": 3, "cors_origins": ["https://a.example"], "access_log": True} | PUBLIC,
    "forwardedAllowIps": "*",
    "serviceAccount": {"create": True, "annotations": {"example.com/role": "files"}},
    "podLabels": {"example.com/use": "true"},
    "networkPolicy": {
        "blockedNetworks": ["169.254.169.254/32", "fd00:ec2::254/128"],
        "apiFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
    },
    "blobUrl": "s3://bucket/files",
    "extraEnv": [{"name": "AWS_REGION", "value": "eu-central-1"}],
}
EXISTING = {
    "secret": {"existingSecret": "mine"},
    "serviceMonitor": {"enabled": True},
    "worker": {"metricsPort": 0},
    "serviceAccount": {"name": "ours"},
    "keda": {"enabled": True, "databaseUrlKey": "KEDA_URL"},
}
REFUSED: dict[str, dict[str, Any]] = {
    "Set secret.secretKey": {},
    "'replica' not allowed": PLAIN | {"api": {"replica": 3}},
    "Set secret.metricsToken": PLAIN | {"serviceMonitor": {"enabled": True}},
    "/secret/metricsToken": {"secret": SECRET | {"metricsToken": "short"}},
    "/secret/secretKey": {"secret": SECRET | {"secretKey": "short"}},
    "invalid propertyName 'secret_key'": PLAIN | {"settings": {"secret_key": "x"}},
    "invalid propertyName 'metrics_token'": PLAIN | {"settings": {"metrics_token": "x"}},
    "invalid propertyName 'metrics_port'": PLAIN | {"settings": {"metrics_port": 9464}},
}
Document = dict[str, Any]


@pytest.fixture(scope="module")
def results() -> list[Any]:
    """Return what Helm makes of PLAIN, FULL, EXISTING and the values of REFUSED; and the findings of its lint."""
    if importlib.util.find_spec("helm_python") is None:
        why = "helm-python-sdk has no package for this machine"
        pytest.fail(why, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(why)
    cases = json.dumps([PLAIN, FULL, EXISTING, *REFUSED.values()])
    script = Path(__file__).with_name("render.py")
    output = subprocess.run([sys.executable, script, CHART, cases], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


def documents(files: Mapping[str, str]) -> list[Document]:
    """Return all Kubernetes resources of a rendered chart."""
    return [each for name, text in files.items() if name.endswith(".yaml") for each in parsed(text)]


@functools.cache
def parsed(text: str) -> list[Document]:
    """Return the resources of a file."""
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def one(files: Mapping[str, str], kind: str, ending: str = "") -> Document:
    """Return the one resource of this kind whose name ends so."""
    [resource] = [
        each for each in documents(files) if each["kind"] == kind and each["metadata"]["name"].endswith(ending)
    ]
    return resource


def test_helm_finds_no_fault(results: list[Any]) -> None:
    report = results[-1]
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_each_resource(version: str, results: list[Any]) -> None:
    import kubernetes_validate  # takes seconds, which only the process that runs this test must wait for

    plain, full, existing = map(documents, results[:3])
    # those of KEDA and of the Prometheus operator have schemas of their own
    extensions = {"ScaledObject", "ServiceMonitor", "PodMonitor"}
    assert {each["kind"] for each in full} - {each["kind"] for each in plain} == extensions | {
        "HorizontalPodAutoscaler",
        "Ingress",
        "ServiceAccount",
    }
    for resource in [*plain, *full, *existing]:
        if resource["kind"] not in extensions:
            kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize(("number", "message"), list(enumerate(REFUSED, start=3)))
def test_values_that_are_missing_or_misspelt_are_refused(number: int, message: str, results: list[Any]) -> None:
    assert message in results[number]


def pods(files: Mapping[str, str]) -> dict[str, Document]:
    """Return the templates of the pods, by the ending of the names of their owners."""
    owners = [each for each in documents(files) if each["kind"] in {"Deployment", "Job"}]
    return {each["metadata"]["name"].rpartition("-")[2]: each["spec"]["template"]["spec"] for each in owners}


def variables(pod: Document) -> dict[str, str]:
    """Return the environment variables of a pod that have values."""
    return {each["name"]: each.get("value", "") for each in pod["containers"][0]["env"]}


def test_pods_have_no_rights_that_they_do_not_need(results: list[Any]) -> None:
    for files in results[:3]:
        assert pods(files).keys() == {"api", "worker", "migrate"}
        for pod in pods(files).values():
            assert pod["automountServiceAccountToken"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            [container] = pod["containers"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_a_stopping_pod_is_not_killed_while_callers_wait_for_reviews(results: list[Any]) -> None:
    for name in ("api", "worker"):
        pod = pods(results[0])[name]
        settings = variables(pod)
        drain_seconds = float(settings["SIGNOFF_DRAIN_SECONDS"])
        unready_seconds = float(settings.get("SIGNOFF_UNREADY_SECONDS", 0))
        assert drain_seconds > HOLD_SECONDS
        assert pod["terminationGracePeriodSeconds"] > unready_seconds + drain_seconds + MARGIN_SECONDS
    # a pod leaves the proxies before it stops to listen
    api = pods(results[0])["api"]
    probe = api["containers"][0]["readinessProbe"]
    assert probe["httpGet"]["path"] == "/health/ready"
    assert probe["periodSeconds"] * probe["failureThreshold"] < float(variables(api)["SIGNOFF_UNREADY_SECONDS"])


def test_the_migration_runs_before_everything_else_and_once(results: list[Any]) -> None:
    for files, secret in zip(results[:3], ("demo-signoff-migrate", "demo-signoff-migrate", "mine"), strict=True):
        job = one(files, "Job")
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert "hook-failed" not in job["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        assert (job["spec"]["backoffLimit"], job["spec"]["template"]["spec"]["restartPolicy"]) == (0, "Never")
        [container] = job["spec"]["template"]["spec"]["containers"]
        assert container["args"][:2] == ["migrate", "--wait"]
        assert container["envFrom"] == [{"secretRef": {"name": secret}}]
    # its Secret is there before it, since those of the release are not
    hook = one(results[0], "Secret", "-migrate")["metadata"]["annotations"]
    assert int(hook["helm.sh/hook-weight"]) < 0


def test_secrets_are_in_the_secret_alone(results: list[Any]) -> None:
    plain, _, existing = results[:3]
    assert one(plain, "Secret", "signoff")["stringData"]["SIGNOFF_SECRET_KEY"] == SECRET["secretKey"]
    others = [each for each in documents(plain) if each["kind"] != "Secret"]
    assert SECRET["secretKey"] not in json.dumps(others)
    assert [each for each in documents(existing) if each["kind"] == "Secret"] == []
    assert pods(existing)["api"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "mine"}}]


def test_prometheus_sends_the_metrics_token_of_the_secret(results: list[Any]) -> None:
    _, full, existing = results[:3]
    for files, secret in ((full, "demo-signoff"), (existing, "mine")):
        [endpoint] = one(files, "ServiceMonitor")["spec"]["endpoints"]
        assert endpoint["authorization"] == {"credentials": {"name": secret, "key": "SIGNOFF_METRICS_TOKEN"}}
        assert endpoint["path"] == "/metrics"
    assert one(full, "Secret", "signoff")["stringData"]["SIGNOFF_METRICS_TOKEN"] == "m" * 16
    assert unknown_variables({"SIGNOFF_METRICS_TOKEN": ""}, Settings.model_fields) == []


def test_prometheus_reads_the_metrics_of_each_worker(results: list[Any]) -> None:
    plain, full, existing = results[:3]
    for files in (plain, full):
        pod = pods(files)["worker"]
        [port] = pod["containers"][0]["ports"]
        assert variables(pod)["SIGNOFF_METRICS_PORT"] == str(port["containerPort"])
        assert variables(pod)["SIGNOFF_METRICS_HOST"] == "0.0.0.0"
        [rule] = one(files, "NetworkPolicy", "-worker")["spec"]["ingress"]
        assert rule["ports"] == [{"port": port["name"]}]
        assert rule.get("from") == one(files, "NetworkPolicy", "-api")["spec"]["ingress"][0].get("from")
    [endpoint] = one(full, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"], endpoint["interval"]) == ("metrics", "/metrics", "30s")
    assert "authorization" not in endpoint
    # without a port, nobody calls workers
    assert "ports" not in pods(existing)["worker"]["containers"][0]
    assert {each["kind"] for each in documents(existing)} & {"PodMonitor", "ServiceMonitor"} == {"ServiceMonitor"}
    policies = [each["metadata"]["name"] for each in documents(existing) if each["kind"] == "NetworkPolicy"]
    assert policies == ["demo-signoff", "demo-signoff-api"]


def test_settings_are_variables_that_the_program_knows(results: list[Any]) -> None:
    for pod in pods(results[1]).values():
        settings = variables(pod)
        assert unknown_variables(settings, Settings.model_fields) == []
        assert (settings["SIGNOFF_CONCURRENCY"], settings["SIGNOFF_ACCESS_LOG"]) == ("3", "true")
        assert json.loads(settings["SIGNOFF_CORS_ORIGINS"]) == ["https://a.example"]


def test_what_scales_sets_the_number_of_pods_alone(results: list[Any]) -> None:
    plain, full = results[:2]
    assert [one(plain, "Deployment", name)["spec"]["replicas"] for name in ("api", "worker")] == [2, 3]
    assert not any("replicas" in one(full, "Deployment", name)["spec"] for name in ("api", "worker"))
    assert one(full, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "demo-signoff-api"
    scaled = one(full, "ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "demo-signoff-worker"
    queries = [trigger["metadata"]["query"] for trigger in scaled["triggers"]]
    assert queries == [(CHART / "queries" / name).read_text() for name in ("jobs.sql", "age.sql")]


def test_the_ingress_waits_longer_than_a_call_and_a_review(results: list[Any]) -> None:
    annotations = one(results[1], "Ingress")["metadata"]["annotations"]
    seconds = int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"])
    assert seconds > max(CALL_SECONDS, HOLD_SECONDS)


def test_pods_reach_those_of_the_cluster_and_no_metadata(results: list[Any]) -> None:
    [rule] = one(results[1], "NetworkPolicy", "signoff")["spec"]["egress"]
    # some networks match blocks of addresses with what is outside of the cluster alone
    assert rule["to"] == [
        {"namespaceSelector": {}},
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fd00:ec2::254/128"]}},
    ]
    [standard] = one(results[0], "NetworkPolicy", "signoff")["spec"]["egress"]
    assert standard == rule


def test_pods_that_reach_the_bucket_have_the_service_account(results: list[Any]) -> None:
    plain, full, existing = results[:3]
    assert one(full, "ServiceAccount")["metadata"]["annotations"] == {"example.com/role": "files"}
    for files, name in ((plain, None), (full, "demo-signoff"), (existing, "ours")):
        assert [pods(files)[each].get("serviceAccountName") for each in ("api", "worker")] == [name, name]
        # the account of the release is made after the migration
        assert "serviceAccountName" not in pods(files)["migrate"]
    for each in ("api", "worker"):
        assert one(full, "Deployment", each)["spec"]["template"]["metadata"]["labels"]["example.com/use"] == "true"
    assert [each for files in (plain, existing) for each in documents(files) if each["kind"] == "ServiceAccount"] == []


def test_keda_gets_an_address_that_its_driver_understands(results: list[Any]) -> None:
    _, full, existing = results[:3]
    for files, variable in ((full, "KEDA_DATABASE_URL"), (existing, "KEDA_URL")):
        triggers = one(files, "ScaledObject")["spec"]["triggers"]
        assert {each["metadata"]["connectionFromEnv"] for each in triggers} == {variable}
    secret = one(full, "Secret", "signoff")["stringData"]
    assert secret["KEDA_DATABASE_URL"] == "postgresql://u:p%2B@h:6432/d?sslmode=require"
    assert secret["SIGNOFF_DATABASE_URL"] == POOLED


def test_the_notes_say_how_to_reach_the_link_to_sign_in(results: list[Any]) -> None:
    plain, full = (files["signoff/templates/NOTES.txt"] for files in results[:2])
    assert "kubectl -n default port-forward service/demo-signoff 8000:80" in plain
    assert "port-forward" not in full


def test_the_commands_of_the_guides_fit_the_chart(results: list[Any]) -> None:
    guides = {name: (ROOT / "docs" / "how-to" / f"{name}.md").read_text() for name in ("deploy", "upgrade")}
    deadline = one(results[0], "Job")["spec"]["activeDeadlineSeconds"]
    for guide in guides.values():
        commands = re.findall(r"^ *helm (?:install|upgrade) (?:.*\\\n)*.*$", guide, re.MULTILINE)
        assert commands
        for command in commands:
            assert int(re.findall(r"--timeout (\d+)m", command)[0]) * 60 > deadline
            assert "--reuse-values" not in command
    # the pod of a migration that failed stays
    [selector] = re.findall(r"kubectl wait pod -l '(.*?)'", guides["upgrade"])
    assert "app.kubernetes.io/component in (api,worker)" in selector


def test_kubernetes_accepts_the_pod_that_restores_a_backup() -> None:
    import kubernetes_validate

    guide = (ROOT / "docs" / "how-to" / "back-up-and-restore.md").read_text()
    [text] = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    pod = yaml.safe_load(text)
    kubernetes_validate.validate(pod, KUBERNETES[0], strict=True)
    [container] = pod["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "signoff"}}]
    assert unknown_variables({each["name"]: "" for each in container["env"]}, Settings.model_fields) == []


def test_selectors_match_the_pods_they_are_for(results: list[Any]) -> None:
    labels = {
        each["metadata"]["name"].rpartition("-")[2]: each["spec"]["template"]["metadata"]["labels"]
        for each in documents(results[1])
        if each["kind"] in {"Deployment", "Job"}
    }

    def matched(selector: Mapping[str, str]) -> set[str]:
        return {name for name, own in labels.items() if selector.items() <= own.items()}

    full = results[1]
    assert matched(one(full, "Service")["spec"]["selector"]) == {"api"}
    for name in ("api", "worker"):
        assert matched(one(full, "Deployment", name)["spec"]["selector"]["matchLabels"]) == {name}
        assert matched(one(full, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]) == {name}
    for name in ("api", "worker"):
        assert matched(one(full, "NetworkPolicy", f"-{name}")["spec"]["podSelector"]["matchLabels"]) == {name}
    assert matched(one(full, "PodMonitor")["spec"]["selector"]["matchLabels"]) == {"worker"}
    assert matched(one(full, "NetworkPolicy", "signoff")["spec"]["podSelector"]["matchLabels"]) == labels.keys()
