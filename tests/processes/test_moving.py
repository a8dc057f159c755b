"""Backup and restore of a deployment, in real processes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from support.processes import (
    SIGNOFF,
    ask,
    clean_environment,
    first_token,
    free_port,
    run_command,
    run_many,
    served,
    signoff,
    until,
)

UPSTREAM = "https://api.example.com/v1"


def run_signoff(environment: dict[str, str], *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """Run one command; return its exit code, its output and its error output."""
    result = run_command((*SIGNOFF, *arguments), env=environment, stdin=stdin)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("target", [pytest.param("sqlite", marks=pytest.mark.long), "postgres"])
def test_a_backup_of_a_running_server_can_be_restored_elsewhere(
    target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # given a server with a finished job, a held job, and a model with a key
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
        assert run_signoff(old, *add, stdin="sk-secret\n")[0] == 0
        before = {job: ask(port, f"/job?id={job}", token) for job in (done, held)}
        # when a backup is made while the server runs
        code, output, error_output = run_signoff(old, "backup", str(file))
        assert (code, error_output) == (0, "")
        assert f"{file} was written and verified (users: 1, models: 1, jobs: 2)." in output
        assert f"It does not contain the encryption key (--with-key): back up {tmp_path}/old/secret.key " in output
    # and is restored elsewhere
    code, output, error_output = run_signoff(new, "restore", str(file))
    assert code == 0
    assert output.startswith("The data of 20")
    assert "(users: 1, models: 1, jobs: 2)" in output
    assert error_output == f"The upstream keys of gpt-* cannot be decrypted with {tmp_path}/new/secret.key.\n"
    # then a server there refuses to start without the key
    code, _, error_output = run_signoff(new, "jobs")
    assert code == 1
    assert "Copy the keys of the other hosts there" in error_output
    shutil.copy(tmp_path / "old" / "secret.key", tmp_path / "new" / "secret.key")
    # and with it the token works, the jobs are unchanged, and the held one can be approved
    with served(new, tmp_path, port):
        assert {job: ask(port, f"/job?id={job}", token) for job in (done, held)} == before
        assert ask(port, "/reviewJob", token, {"id": held, "status": "success"}) == {"status": "success"}
        assert ask(port, f"/job?id={held}", token)["status"] == "success"
        later = ask(port, "/api/jobs", token, {"target": "echo", "body": chat})["job_id"]
        until(lambda: ask(port, f"/job?id={later}", token)["status"] == "success" or None)
    # and a second restore is refused
    code, output, error_output = run_signoff(new, "restore", str(file))
    assert (code, output) == (1, "")
    assert error_output.startswith("The database is not empty: it contains ")
    assert error_output.count("\n") == 1


def test_a_backup_with_the_key_can_be_restored_without_other_files(tmp_path: Path) -> None:
    old, new, file = clean_environment(tmp_path / "old"), clean_environment(tmp_path / "new"), tmp_path / "backup"
    add = ("model", "add", "mine", "--kind", "openai", "--url", UPSTREAM, "--key-stdin")
    assert run_signoff(old, *add, stdin="sk-secret\n")[0] == 0
    assert "It contains the encryption key: " in signoff(old, "backup", str(file), "--with-key")
    # given a directory that has a key already
    signoff(clean_environment(tmp_path / "new"), "jobs")
    os.unlink(tmp_path / "new" / "signoff.db")  # noqa: PTH108
    own = (tmp_path / "new" / "secret.key").read_text()
    # then the key of the backup is added to it
    code, output, error_output = run_signoff(new, "restore", str(file))
    assert (code, error_output) == (0, "")
    assert "key" not in output
    assert (tmp_path / "new" / "secret.key").read_text() == own + (tmp_path / "old" / "secret.key").read_text()
    assert (tmp_path / "new" / "secret.key").stat().st_mode & 0o777 == 0o600


def test_a_backup_has_the_key_of_the_setting_and_a_restore_says_where_its_key_belongs(tmp_path: Path) -> None:
    old, new, file = clean_environment(tmp_path / "old"), clean_environment(tmp_path / "new"), tmp_path / "backup"
    old["SIGNOFF_SECRET_KEY"], new["SIGNOFF_SECRET_KEY"] = (Fernet.generate_key().decode() for _ in range(2))
    add = ("model", "add", "mine", "--kind", "openai", "--url", UPSTREAM, "--key-stdin")
    assert run_signoff(old, *add, stdin="sk-secret\n")[0] == 0
    assert "back up the setting `secret_key` as well." in signoff(old, "backup", f"{file}-without-key")
    # given a file with a key from before
    (tmp_path / "old" / "secret.key").write_bytes(Fernet.generate_key())
    signoff(old, "backup", str(file), "--with-key")
    # when it is restored where the setting has another key
    code, output, error_output = run_signoff(new, "restore", str(file))
    assert code == 0
    where = f"The setting `secret_key` lacks the key of the backup. Append it; it is in {tmp_path}/new/secret.key.\n"
    assert where in output
    assert error_output == "The upstream keys of mine cannot be decrypted with the setting `secret_key`.\n"
    assert (tmp_path / "new" / "secret.key").read_text().strip() == old["SIGNOFF_SECRET_KEY"]
    # and where it has the same
    same = clean_environment(tmp_path / "same") | {"SIGNOFF_SECRET_KEY": old["SIGNOFF_SECRET_KEY"]}
    code, output, error_output = run_signoff(same, "restore", str(file))
    assert (code, "key" in output, error_output) == (0, False, "")
    assert not (tmp_path / "same" / "secret.key").exists()
    # and without a key in the backup, the message names the setting
    os.unlink(tmp_path / "new" / "signoff.db")  # noqa: PTH108
    code, output, _ = run_signoff(new, "restore", f"{file}-without-key")
    assert "copy the one of the backed-up server to the setting `secret_key`." in output


def test_failures_are_reported_in_one_line(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path / "data")
    (tmp_path / "text").write_text("hello")
    reasons = {
        ("backup", f"{tmp_path}/new"): f"There is no database at {tmp_path}/data/signoff.db.",
        (
            "backup",
            f"{tmp_path}/new",
            "--with-key",
        ): f"read from {tmp_path}/data/secret.key: No such file or directory. Set",
        ("restore", f"{tmp_path}/nothing"): "No such file or directory",
        ("restore", f"{tmp_path}/text"): f"{tmp_path}/text is not a Signoff backup: it is not a gzip file.",
        ("restore", f"{tmp_path}"): "Is a directory",
    }
    results = run_many(environment, *((*arguments, "") for arguments in reasons))
    for (code, output, error_output), reason in zip(results, reasons.values(), strict=True):
        assert (code, output, error_output.count("\n")) == (1, "", 1), error_output
        assert reason in error_output
    _, existing, no_folder = run_many(
        environment,
        ("migrate", ""),
        ("backup", f"{tmp_path}/text", ""),
        ("backup", f"{tmp_path}/no/folder", ""),
    )
    refusal = f"{tmp_path}/text exists already and is not overwritten; choose another file name.\n"
    assert existing == (1, "", refusal)
    assert (tmp_path / "text").read_text() == "hello"
    assert "No such file" in no_folder[2]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "text"}
