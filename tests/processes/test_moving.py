"""A deployment moves by a backup, in real processes: all that callers and reviewers know goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.processes import SIGNOFF, ask, clean_environment, first_token, free_port, served, signoff, until

UPSTREAM = "https://api.example.com/v1"


def told(environment: dict[str, str], *words: str, stdin: str = "") -> tuple[int, str, str]:
    """The exit code, the output and the complaints of one command."""
    ran = subprocess.run(
        (*SIGNOFF, *words), env=environment, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize("target", ["sqlite", "postgres"])
def test_a_served_backup_goes_on_elsewhere(target: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    # given a server with a job that is done, one that is held, and a model with a key
    old, new, file = clean_environment(tmp_path / "old"), clean_environment(tmp_path / "new"), tmp_path / "backup"
    if target == "postgres":
        new["SIGNOFF_DATABASE_URL"] = request.getfixturevalue("empty_postgres_url")
    port = free_port()
    with served(old, tmp_path, port):
        token = first_token(tmp_path)
        chat = {"model": "echo", "messages": [{"role": "user", "content": "Grüße"}]}
        done = ask(port, "/api/jobs", token, {"target": "echo", "body": chat})["job_id"]
        held = ask(port, "/enqueue", token, chat)["job_id"]
        until(lambda: ask(port, f"/job?id={done}", token)["status"] == "success" or None)
        until(lambda: ask(port, f"/job?id={held}", token)["status"] == "human" or None)
        add = ("model", "add", "gpt-*", "--kind", "openai", "--url", UPSTREAM, "--key-stdin")
        assert told(old, *add, stdin="sk-secret\n")[0] == 0
        before = {job: ask(port, f"/job?id={job}", token) for job in (done, held)}
        # when a backup is made while it serves
        code, said, complaints = told(old, "backup", str(file))
        assert (code, complaints) == (0, "")
        assert f"{file} was written and verified (users: 1, models: 1, jobs: 2)." in said
        assert f"It does not contain the encryption key (--with-key): back up {tmp_path}/old/secret.key " in said
    # and is restored elsewhere
    code, said, complaints = told(new, "restore", str(file))
    assert code == 0
    assert said.startswith("The data of 20")
    assert "(users: 1, models: 1, jobs: 2)" in said
    assert complaints == f"{tmp_path}/new/secret.key cannot decrypt the upstream keys of gpt-*.\n"
    # then the token works there, jobs are as they were, and the held one can be signed off
    with served(new, tmp_path, port):
        assert {job: ask(port, f"/job?id={job}", token) for job in (done, held)} == before
        assert ask(port, "/reviewJob", token, {"id": held, "status": "success"}) == {"status": "success"}
        assert ask(port, f"/job?id={held}", token)["status"] == "success"
        more = ask(port, "/api/jobs", token, {"target": "echo", "body": chat})["job_id"]
        until(lambda: ask(port, f"/job?id={more}", token)["status"] == "success" or None)
    # and a second restore is refused
    code, said, complaints = told(new, "restore", str(file))
    assert (code, said) == (1, "")
    assert complaints.startswith("The database is not empty: it contains ")
    assert complaints.count("\n") == 1


def test_a_backup_with_the_key_is_enough_alone(tmp_path: Path) -> None:
    old, new, file = clean_environment(tmp_path / "old"), clean_environment(tmp_path / "new"), tmp_path / "backup"
    add = ("model", "add", "mine", "--kind", "openai", "--url", UPSTREAM, "--key-stdin")
    assert told(old, *add, stdin="sk-secret\n")[0] == 0
    assert "It contains the encryption key: " in signoff(old, "backup", str(file), "--with-key")
    # given a folder that has a key already
    signoff(clean_environment(tmp_path / "new"), "jobs")
    os.unlink(tmp_path / "new" / "signoff.db")  # noqa: PTH108
    own = (tmp_path / "new" / "secret.key").read_text()
    # then the other one is added to it
    code, said, complaints = told(new, "restore", str(file))
    assert (code, complaints) == (0, "")
    assert "key" not in said
    assert (tmp_path / "new" / "secret.key").read_text() == own + (tmp_path / "old" / "secret.key").read_text()
    assert (tmp_path / "new" / "secret.key").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path / "data")
    (tmp_path / "text").write_text("hello")
    for words, why in (
        (("backup", str(tmp_path / "new")), f"There is no database at {tmp_path}/data/signoff.db."),
        (("backup", str(tmp_path / "new"), "--with-key"), "No such file or directory"),
        (("restore", str(tmp_path / "nothing")), "No such file or directory"),
        (("restore", str(tmp_path / "text")), f"{tmp_path}/text is not a Signoff backup: it is not a gzip file."),
        (("restore", str(tmp_path)), "Is a directory"),
    ):
        code, said, complaints = told(environment, *words)
        assert (code, said, complaints.count("\n")) == (1, "", 1), complaints
        assert why in complaints
    signoff(environment, "migrate")
    code, said, complaints = told(environment, "backup", str(tmp_path / "text"))
    refusal = f"{tmp_path}/text exists already and is not overwritten; choose another file name.\n"
    assert (code, complaints) == (1, refusal)
    assert (tmp_path / "text").read_text() == "hello"
    assert "No such file" in told(environment, "backup", str(tmp_path / "no" / "folder"))[2]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "text"}
