"""`deploy/Dockerfile`: the rules of hadolint, and rules of our own."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.paths import DEPLOY, ROOT

TEXT = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = {
    re.split(r"\s+", head)[-1]: body
    for head, _, body in (part.partition("\n") for part in re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:])
}


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    command = [program, "--failure-threshold", "style", DEPLOY / "Dockerfile"]
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (0, b"")


def test_there_is_an_image_with_the_small_model_and_one_without() -> None:
    assert {"signoff", "signoff-local"} <= STAGES.keys()
    assert list(STAGES)[-1] == "signoff"  # the one that is built if none is named
    assert "weights.txt" in STAGES["packages-local"]
    assert "weights.txt" not in STAGES["packages"]


def test_an_image_runs_as_another_user_than_root_and_checks_its_health() -> None:
    runtime = STAGES["runtime"]
    assert re.search(r"^USER 10001:10001$", runtime, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*/health/ready", runtime, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["signoff"\]\s+CMD \["serve"\]$', runtime, re.MULTILINE)
    assert not re.search("^USER", STAGES["signoff"] + STAGES["signoff-local"], re.MULTILINE)


def test_every_package_is_installed_with_its_hash() -> None:
    installs = re.findall(r"pip install (.*?)(?=&&|\n)", TEXT)
    assert len(installs) == 5
    assert [line for line in installs if "--require-hashes" not in line] == [installs[2]]
    assert "--no-deps /wheel/*.whl" in installs[2]


@pytest.mark.parametrize("name", ["image.txt", "image-local.txt"])
def test_an_image_can_send_traces_with_the_packages_that_the_tests_use(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {re.split(r"[<>=]", requirement)[0] for requirement in extras["otel"]}
    packages = pinned(name)
    assert wanted <= packages.keys()
    tested = pinned("dev.txt")
    assert {each: version for each, version in packages.items() if tested.get(each) != version} == {}


def pinned(name: str) -> dict[str, str]:
    """Return the versions of the packages in a lock, by name."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))


def test_what_is_copied_is_there_and_is_not_ignored() -> None:
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.MULTILINE) for name in line.split()[:-1]]
    assert len(copied) > 5
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    for name in copied:
        assert (ROOT / name).exists(), name
        assert [each for each in allowed if name == each or name.startswith(f"{each}/") or fnmatch.fnmatch(name, each)]
