"""The command line as people and scripts use it: real processes, each in its own directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from signoff import __version__
from signoff.cli import _start, _welcome
from signoff.core.access import Caller
from signoff.core.api_tokens import PREFIX, is_well_formed
from signoff.core.ask import Ask
from signoff.core.model import Model
from signoff.errors import Unauthorized
from signoff.server.bootstrap import open_services
from signoff.settings import Settings
from signoff.work.admin.people import create_user, identify
from signoff.work.admin.registry import register_model
from signoff.work.admin.sign_in import sign_in
from signoff.work.jobs.query import load_job
from signoff.work.services import Services
from signoff.work.submit import submit
from support.database_files import make_file
from support.preloaded import PreloadedProcess
from support.processes import run_command, run_many

T = TypeVar("T")
TIMEOUT_SECONDS = 60.0
TOKEN = re.compile(r"sg_\w{38}")


@pytest.fixture
def database(tmp_path: Path) -> None:
    """Create the database in the data directory, so that the first command need not."""
    make_file(tmp_path / "data" / "signoff.db")


# Run several commands in one process, because each start takes about a second.
# Print a JSON list of [exit code, stdout, stderr].
def environment(folder: Path, more: dict[str, str]) -> dict[str, str]:
    """Return an environment with a data directory in `folder`, without other settings of Signoff."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SIGNOFF_", "INNER_LLM"))}
    return {**inherited, "SIGNOFF_DATA_DIR": str(folder / "data"), "COLUMNS": "200", **more}


def signoff(folder: Path, *arguments: str, stdin: str = "", **more: str) -> tuple[int, str, str]:
    """Run one command; return its exit code, its output and its error output."""
    command = [sys.executable, "-m", "signoff", *arguments]
    result = run_command(command, stdin=stdin, cwd=folder, env=environment(folder, more))
    return result.returncode, result.stdout, result.stderr


def signoff_many(folder: Path, *commands: list[str], **more: str) -> list[tuple[int, str, str]]:
    """Run several commands in one process; the last word of each is its input."""
    return run_many(environment(folder, more), *commands, folder=folder)


@contextlib.contextmanager
def running_signoff(folder: Path, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a running command; kill it at the end."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "signoff", *arguments]
    with PreloadedProcess(
        command, cwd=folder, env=environment(folder, more), stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def stop(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal to a process; return its exit code and its error output, and fail if it does not end."""
    process.send_signal(number)
    _, error_output = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, error_output


def read_welcome(process: subprocess.Popen[str]) -> str:
    """Return what a server prints when it starts, up to its last line."""
    assert process.stdout is not None
    lines = list[str]()
    while not lines or "/enqueue" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
    return "".join(lines)


def url_in(text: str) -> str:
    """Return the first URL in `text`."""
    match = re.search(r"http://[\d.]+:\d+", text)
    assert match
    return match[0]


def request_json(url: str, token: str, body: Any = None) -> Any:
    """Send a GET request, or a POST with `body`; return the JSON of the response."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        return json.loads(response.read())


def run_inside(folder: Path, query: Callable[[Services], Awaitable[T]]) -> T:
    """Return the result of `query` on the data in `folder`."""

    async def run() -> T:
        async with open_services(Settings(data_dir=folder / "data")) as services:
            return await query(services)

    return asyncio.run(run())


def read_data_files(folder: Path) -> bytes:
    """Return the contents of all files in the data directory."""
    return b"".join(path.read_bytes() for path in sorted((folder / "data").iterdir()) if path.is_file())


def is_one_line(text: str) -> bool:
    """Return True if `text` is exactly one line."""
    return text.endswith("\n") and text.count("\n") == 1


@pytest.mark.usefixtures("database")
def test_users_get_tokens_and_passwords_which_are_never_stored_in_plain_text(tmp_path: Path) -> None:
    # given a token for a new user
    code, token, error_output = signoff(tmp_path, "token", "create", "Ann@example.com", "--role", "user", "--quiet")
    assert (code, error_output) == (0, "")
    assert is_well_formed(token.removesuffix("\n"))
    # when more is requested for that user
    escalated, named, with_password, weak, promoted, with_new_password, unknown, invalid = signoff_many(
        tmp_path,
        ["token", "create", "ann@example.com", "--role", "admin", "--quiet", ""],
        ["token", "create", "ann@example.com", "--name", "[bold]", ""],
        ["user", "create", "ann@example.com", "--password-stdin", "correct horse\nmore\n"],
        ["user", "create", "ann@example.com", "--password-stdin", "short\n"],
        ["user", "create", "ann@example.com", "--role", "reviewer", ""],
        ["user", "create", "ann@example.com", "--password-stdin", "battery staple"],
        ["user", "link", "nobody@example.com", ""],
        ["user", "create", "not an address", ""],
    )
    # then a token has no more rights than its user
    assert escalated[:2] == (1, "")
    assert "`role` must not exceed the role of ann@example.com, which is user (got admin)." in escalated[2]
    assert named[0] == 0
    assert named[1].endswith("The token is not shown again.\n")
    assert with_password == (0, "ann@example.com has the role user.\n", "")
    assert (weak[:2], promoted[1]) == ((1, ""), "ann@example.com has the role reviewer.\n")
    # and a new password does not change the role
    assert with_new_password == (0, "ann@example.com has the role reviewer.\n", "")
    for refused in (escalated, weak, unknown, invalid):
        assert refused[0] == 1
        assert is_one_line(refused[2])

    async def callers(services: Services) -> list[Caller]:
        session = await sign_in(services, "ann@example.com", "battery staple", "127.0.0.1")
        return [await identify(services, token.strip()), await identify(services, session, "session")]

    assert [caller.role for caller in run_inside(tmp_path, callers)] == ["user", "reviewer"]
    for secret in (token.strip(), named[1].split()[0], "correct horse", "battery staple"):
        assert secret.encode() not in read_data_files(tmp_path)


@pytest.mark.usefixtures("database")
def test_an_account_of_a_provider_is_bound_and_unbound_by_command(tmp_path: Path) -> None:
    provider = {"SIGNOFF_OIDC_ISSUER": "https://sso.example.com", "SIGNOFF_OIDC_CLIENT_ID": "signoff"}
    _, *bound = signoff_many(
        tmp_path,
        ["user", "create", "ann@example.com", ""],
        ["user", "bind", "ann@example.com", "ann-1", ""],
        ["user", "bind", "ann@example.com", "ann-2", ""],
        ["user", "bind", "ann@example.com", "", ""],
        ["user", "unbind", "ann@example.com", ""],
        **provider,
    )
    assert [(code, output or error) for code, output, error in bound] == [
        (0, "The account ann-1 signs in as ann@example.com.\n"),
        (1, "ann@example.com is bound to another account already; unbind it first.\n"),
        (1, "`subject` must be 1 to 255 printable characters (got 0).\n"),
        (0, "Unbound accounts of ann@example.com: 1.\n"),
    ]
    [without] = signoff_many(tmp_path, ["user", "bind", "ann@example.com", "ann-1", ""])
    assert without[2] == "There is no OpenID Connect provider; an operator sets one by `oidc_issuer`.\n"


@pytest.mark.usefixtures("database")
def test_users_tokens_and_sessions_are_listed_and_revoked_by_command(tmp_path: Path) -> None:
    # given an admin, and a user with two tokens, a session and a link
    prepared = signoff_many(
        tmp_path,
        ["user", "create", "root@example.com", "--role", "admin", ""],
        ["user", "create", "ann@example.com", "--password-stdin", "\ufeffcorrect horse"],
        ["token", "create", "ann@example.com", "--name", "laptop", "--days", "2", "--quiet", ""],
        ["token", "create", "ann@example.com", "--quiet", ""],
        ["token", "create", "ann@example.com", "--days", "0", ""],
        ["user", "link", "ann@example.com", ""],
    )
    assert [code for code, _, _ in prepared] == [0, 0, 0, 0, 1, 0]
    assert prepared[4][2] == "--days must be above 0 and at most 36500 (got 0.0).\n"
    run_inside(tmp_path, lambda services: sign_in(services, "ann@example.com", "correct horse", "127.0.0.1"))
    # when they are listed, revoked and disabled
    listed, others, revoked, again, sessions, ended, none, disabled, refused, users, enabled = signoff_many(
        tmp_path,
        ["token", "list", ""],
        ["token", "list", "root@example.com", ""],
        ["token", "revoke", "1", ""],
        ["token", "revoke", "1", ""],
        ["session", "list", "ann@example.com", ""],
        ["session", "revoke", "ann@example.com", ""],
        ["session", "list", ""],
        ["user", "disable", "ann@example.com", ""],
        ["user", "disable", "root@example.com", ""],
        ["user", "list", ""],
        ["user", "enable", "ann@example.com", ""],
    )
    # then the lists have no secrets
    assert [words for words in ("laptop", "ann@example.com") if words not in listed[1]] == []
    assert "sg_" not in listed[1]
    assert "ann@" not in others[1]
    assert (revoked[:2], again[0]) == ((0, "Revoked: 1.\n"), 1)
    assert again[2] == "There is no token with the id 1, or it was revoked already.\n"
    assert "password" in sessions[1]
    assert ended == (0, "Ended sessions and sign-in links of ann@example.com: 2.\n", "")
    assert "ann@" not in none[1]
    # and the last admin stays one
    assert disabled == (0, "ann@example.com is disabled.\n", "")
    assert (refused[0], refused[2]) == (
        1,
        "root@example.com is the last active admin; make another user an admin first.\n",
    )
    assert re.search(r"root@example.com .* admin .* active .*\n.* ann@example.com .* user .* disabled", users[1])
    assert enabled == (0, "ann@example.com is active.\n", "")


@pytest.mark.usefixtures("database")
def test_the_audit_log_has_the_changes_of_commands_and_the_settings_of_each_start(tmp_path: Path) -> None:
    with running_signoff(tmp_path, "serve", "--port", "0", SIGNOFF_WEBHOOK_SECRET="whsec_" + "A" * 32) as server:
        read_welcome(server)
        results = signoff_many(
            tmp_path,
            ["user", "create", "ann@example.com", "--password-stdin", "correct horse"],
            ["price", "set", "m", "--input", "1", "--output", "2", ""],
            ["key", "rotate", ""],
            ["audit", "--actor", "operator", "--json", ""],
            ["audit", "--subject", "user:ann@example.com", ""],
            ["audit", "--since", "2999-01-01", "--json", ""],
        )
    assert [code for code, _, _ in results] == [0] * 6
    entries = [json.loads(line) for line in results[3][1].splitlines()]
    assert [entry["action"] for entry in entries[:3]] == ["encryption_key_changed", "price_created", "user_created"]
    assert entries[2]["after"]["changed_secrets"] == ["password"]
    assert re.search(r"operator .* user_created .* user:ann@example.com", results[4][1])
    assert results[5][1] == ""
    # and the next start with other settings is recorded, but not one with the same ones
    for seconds in ("7", "7"):
        with running_signoff(tmp_path, "serve", "--port", "0", SIGNOFF_SWEEP_SECONDS=seconds) as server:
            read_welcome(server)
    _, text, _ = signoff(tmp_path, "audit", "--subject", "settings:serve", "--json")
    [second, first] = [json.loads(line) for line in text.splitlines()]
    assert (first["actor"], first["before"], second["before"]) == ("system", None, first["after"])
    assert (second["after"]["sweep_seconds"], second["after"]["webhook_secret"]) == (7, None)
    assert "AAAA" not in text


@pytest.mark.usefixtures("database")
def test_a_running_server_refuses_a_token_that_a_command_revokes(tmp_path: Path) -> None:
    with running_signoff(tmp_path, "serve", "--port", "0", "--no-work") as server:
        text = read_welcome(server)
        url, [token] = url_in(text), set(TOKEN.findall(text))
        assert request_json(f"{url}/jobs", token) == []

        assert signoff(tmp_path, "token", "revoke", "1")[0] == 0

        def is_refused() -> bool:
            try:
                request_json(f"{url}/jobs", token)
            except urllib.error.HTTPError as error:
                return error.code == 401
            return False

        until(is_refused)


@pytest.mark.usefixtures("database")
def test_a_sign_in_link_is_printed_on_a_terminal_only(tmp_path: Path) -> None:
    texts = [
        run_inside(tmp_path, lambda services, one=one: _welcome(services, "http://x", is_terminal=one))
        for one in (True, False, True)
    ]

    links = [re.findall(r"http://x/signin/\w+", text) for text in texts]

    assert [len(addresses) for addresses in links] == [1, 0, 1]
    assert "signoff user link admin@localhost" in texts[1]
    # the output of this test is no terminal
    started = run_inside(tmp_path, lambda services: _start(services, Settings(data_dir=tmp_path), "http://x"))
    assert "/signin/" not in started
    # and the new link has ended the one before
    former, newest = [PREFIX + links[turn][0].rpartition("/")[2] for turn in (0, 2)]

    async def callers(services: Services) -> Caller:
        with pytest.raises(Unauthorized):
            await identify(services, former, "signin")
        return await identify(services, newest, "signin")

    assert run_inside(tmp_path, callers).email == "admin@localhost"


@pytest.mark.parametrize(
    ("default", "options"), [("local", {"temperature": 0, "max_tokens": 40}), ("mine", {}), (None, {"model": "echo"})]
)
def test_the_printed_commands_suit_the_default_model(
    default: str | None, options: dict[str, Any], tmp_path: Path
) -> None:
    async def welcome(services: Services) -> str:
        services.caches.models._built_in = ()  # `local` is there only where its package is installed
        if default is not None:
            await register_model(services, Model(name=default, kind="echo", default=True))
        return await _welcome(services, "http://x", is_terminal=False)

    text = run_inside(tmp_path, welcome)
    # without a model, it says how to get one
    assert ("signoff model pull" in text and "signoff model add" in text) == (default is None)
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("curl ")]
    bodies = {command[1]: json.loads(command[-1]) for command in commands}
    assert bodies == {
        "http://x/v1/chat/completions": {"messages": [{"role": "user", "content": "Say hello."}]} | options,
        "http://x/enqueue": {"input": "What is 2 + 2?"} | options,
    }


def test_a_settings_file_is_written_once_and_changes_the_next_command(tmp_path: Path) -> None:
    create = ["user", "create", "ann@example.com", ""]
    first, again, _, before = signoff_many(
        tmp_path, ["init", ""], ["init", ""], create, ["user", "link", "ann@example.com", ""]
    )
    assert (first[0], first[1]) == (0, "signoff.toml was written.\n")
    assert again == (1, "", "signoff.toml exists already and is not overwritten; choose another file name.\n")
    assert before[1].startswith("http://127.0.0.1:8000/signin/")
    file = tmp_path / "signoff.toml"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(file.read_text().replace("# public_url = …", 'public_url = "https://signoff.example.com/"'))
    [after] = signoff_many(tmp_path, ["user", "link", "ann@example.com", ""])
    assert after[1].startswith("https://signoff.example.com/signin/")


def test_weights_that_are_there_are_not_installed_again(tmp_path: Path) -> None:
    weights = tmp_path / "data" / "weights" / "small.gguf"
    weights.parent.mkdir(parents=True)
    weights.touch()
    [pull] = signoff_many(tmp_path, ["model", "pull", ""])
    assert pull == (0, f"The weights are there: {weights}\n", "")


def test_a_migration_waits_for_the_database_no_longer_than_it_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"postgresql://u@127.0.0.1:{port}/d"
    code, output, error = signoff(tmp_path, "migrate", "--wait", "0.1", SIGNOFF_DATABASE_URL=url)
    assert (code, output) == (1, "")
    assert "database_unreachable" in error
    assert str(port) in error.splitlines()[-1]


@pytest.mark.usefixtures("database")
def test_models_are_added_and_removed_and_their_keys_are_encrypted(tmp_path: Path) -> None:
    # given a model with a wildcard and a key, a program, and a default model
    url = "https://api.example.com/v1"
    results = signoff_many(
        tmp_path,
        ["migrate", ""],
        ["migrate", ""],
        ["model", "add", "gpt-*", "--kind", "openai", "--url", url, "--key-stdin", "\ufeffsk-very-secret-key\n"],
        ["model", "add", "mine", "--kind", "subprocess", "--command", "run 'a b' --port {port}", "--serve", ""],
        ["model", "add", "fake", "--kind", "Echo", "--review", "Always", ""],
        ["model", "add", "lawyer", "--kind", "person", "--review-queue", "legal", ""],
        ["model", "add", "lawyer", "--kind", "person", "--review", "never", ""],
        ["model", "default", "fake", ""],
        ["model", "default", "nosuch", ""],
        ["model", "list", ""],
        ["model", "remove", "mine", ""],
        ["model", "remove", "mine", ""],
        ["model", "list", ""],
        ["jobs", "--status", "Human", ""],
        ["review", ""],
        ["doctor", ""],
    )
    assert [code for code, _, _ in results] == [0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0]
    assert results[0] == results[1] == (0, "The schema is up to date.\n", "")
    listed, removed, again, after, jobs, review, doctor = results[9:]
    rows = {row.split()[1]: row for row in listed[1].splitlines() if "│" in row}
    assert url in rows["gpt-*"]
    assert "run 'a b' --port '{port}'" in rows["mine"]
    # a new default model keeps its other values
    assert results[7][1] == "fake is the default model.\n"
    assert "There is no registered model 'nosuch'" in results[8][2]
    assert "always" in rows["fake"]
    assert "yes" in rows["fake"]
    assert "always" in rows["lawyer"]
    assert "must not be never" in results[6][2]
    assert "echo" in rows
    # then a removed model is gone, and a second removal fails
    assert removed[1] == "mine is removed.\n"
    assert again[1:] == ("", "There is no registered model 'mine'; list all models with `GET /api/models`.\n")
    assert "mine" not in after[1]
    assert "0 in all" in jobs[1]
    assert review[1] == "No more answers are held for review.\n"
    assert "BAD" not in doctor[1]

    async def key(services: Services) -> str:
        model = await services.caches.models.find("gpt-5")
        assert model.key_id is not None
        sealed = await services.store.catalog.key(model.key_id)
        assert sealed is not None
        return services.adapters.vault.open(sealed)

    # and the key is stored in the database, but not in plain text
    assert run_inside(tmp_path, key) == "sk-very-secret-key"
    assert b"sk-very-secret-key" not in read_data_files(tmp_path)


def test_invalid_options_are_refused_in_one_line(tmp_path: Path) -> None:
    openai = ["model", "add", "m", "--kind", "openai"]
    program = ["model", "add", "m", "--kind", "subprocess", "--serve", "--command"]
    results = signoff_many(
        tmp_path,
        ["token", "create", "a@b.c", "--role", "boss", ""],
        ["user", "create", "a@b.c", "--role", "boss", ""],
        ["jobs", "--status", "done", ""],
        ["budget", "table", "--audit-rate", "1", ""],
        ["budget", "table", "--audit-rate", "0.1", "--max", "-1", ""],
        ["model", "add", "m", "--kind", "magic", ""],
        ["model", "add", "m", "--kind", "echo", "--review", "maybe", ""],
        ["model", "add", "m", "--kind", "echo", "--cache", "maybe", ""],
        ["token", "create", "a@b.c", "--cache", "sometimes", ""],
        ["model", "add", "m*", "--kind", "echo", "--default", ""],
        [*openai, ""],
        [*openai, "--url", "localhost:8000", ""],
        [*openai, "--url", "http://x", "--key-stdin", "\n"],
        ["model", "add", "m", "--kind", "subprocess", ""],
        ["model", "add", "m", "--kind", "http", ""],
        ["model", "add", "m", "--kind", "http", "--url", "http://x", "--command", "run", ""],
        [*program, "run 'a", ""],
        ["limit", "set", "all", "--dollars-day", "-1", ""],
        ["price", "set", "m", "--input", "1", "--output", "much", ""],
    )
    for code, out, error_output in results:
        assert (code, out) == (1, "")
        assert is_one_line(error_output)
    assert results[0][2] == "--role must be one of admin, reviewer, user (got 'boss').\n"
    assert results[-1][2] == "--output: 'much' is not a number; write a price in dollars, such as 0.25.\n"
    assert not (tmp_path / "data").exists()


def test_invalid_settings_and_directories_are_refused_in_one_line(tmp_path: Path) -> None:
    # given a port that is not a number: a command reports it
    code, out, error_output = signoff(tmp_path, "jobs", SIGNOFF_PORT="many")
    assert (code, out) == (1, "")
    assert error_output.startswith("SIGNOFF_PORT: ")
    assert is_one_line(error_output)
    # given a data directory below a file: `doctor` and another command report it
    (tmp_path / "file").touch()
    doctor, jobs = signoff_many(
        tmp_path, ["doctor", ""], ["jobs", ""], SIGNOFF_DATA_DIR=str(tmp_path / "file" / "data")
    )
    assert doctor[0] == 1
    assert re.search(r"ok +│ Python", doctor[1])
    assert re.search(r"BAD │ data folder", doctor[1])
    assert re.search(r"BAD │ database", doctor[1])
    assert (jobs[0], is_one_line(jobs[2])) == (1, True)


USE_FOLDER = """
import os, sys
from signoff.commands.terminal import stop
from signoff.server.bootstrap import check_data_dir
from signoff.settings import load
settings = load()
if os.getuid() == 0:
    os.setuid(65534)  # nobody
try:
    check_data_dir(settings)
except Exception as error:
    stop(str(error))
"""


def test_a_data_folder_that_cannot_be_used_is_named_with_a_remedy(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # others may enter this one
        folder = Path(name).resolve()
        folder.chmod(0o555)
        for path, fault in (
            (folder, "is not writable. Change its owner, or set SIGNOFF_DATA_DIR."),
            (folder / "data", "cannot be made: Permission denied. Set SIGNOFF_DATA_DIR."),
        ):
            command = [sys.executable, "-c", USE_FOLDER]
            settings = environment(tmp_path, {"SIGNOFF_DATA_DIR": str(path)})
            result = subprocess.run(
                command,
                cwd=tmp_path,
                env=settings,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
            assert (result.returncode, result.stderr) == (1, f"The data folder {path} {fault}\n")


@pytest.mark.usefixtures("database")
def test_one_job_is_printed_as_json(tmp_path: Path) -> None:
    async def submit_job(services: Services) -> str:
        user = await create_user(services, "ann@example.com", "user")
        caller = Caller(user_id=user.id, token_id=0, role="user", email=user.email)
        ask = Ask(door="test", caller=caller, body=b'"\\u009b31m"', target="echo")
        return (await submit(services, ask)).id

    job_id = run_inside(tmp_path, submit_job)
    shown, missing = signoff_many(tmp_path, ["jobs", job_id, ""], ["jobs", "missing", ""])
    job = json.loads(shown[1])
    assert (shown[0], job["job_id"], job["status"], job["model"]) == (0, job_id, "bot", "echo")
    assert "\x9b" not in shown[1]
    assert missing == (1, "", "The job missing does not exist, or you may not see it.\n")


def test_the_version_is_printed_and_the_option_is_documented(tmp_path: Path) -> None:
    code, printed, _ = signoff(tmp_path, "--version")
    assert (code, printed.strip()) == (0, __version__)
    assert "`signoff --version`" in (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def test_the_table_of_an_error_budget_has_a_line_for_each_number_of_finds(tmp_path: Path) -> None:
    command = ["budget", "table", "--audit-rate", "0.10", "--confidence", "0.95", "--max", "2"]
    assert signoff(tmp_path, *command)[:2] == (0, "0 42\n1 65\n2 84\n")


@pytest.mark.usefixtures("database")
def test_a_budget_for_each_group_is_shown_and_restarted_whole_or_by_group(tmp_path: Path) -> None:
    policy = {"target": "echo", "budget": {"answers": 10_000, "share": 0.02, "audit_rate": 0.1, "per": "user"}}
    _, listed, shown, restarted, missing = signoff_many(
        tmp_path,
        ["policy", "put", "refunds", "-", json.dumps(policy)],
        ["policy", "list", ""],
        ["budget", "show", "refunds", ""],
        ["budget", "restart", "refunds", ""],
        ["budget", "show", "refunds", "--group", "12", ""],
    )
    assert "0.02 of 10000 per user" in listed[1]
    for result in (shown, restarted):
        assert result[0] == 0
        assert all(word in result[1] for word in ("group", "gate", "wrong found"))
    assert missing[0] == 1
    assert "has no group '12'" in missing[2]


@pytest.mark.usefixtures("database")
def test_a_policy_is_saved_shown_tried_and_deleted(tmp_path: Path) -> None:
    policy = {"target": "echo", "rules": [{"if": "answer.length > 3", "then": "hold", "queue": "risky"}]}
    budget = {"answers": 10_000, "share": 0.02, "audit_rate": 0.1}
    (tmp_path / "draft.json").write_text(json.dumps(policy), encoding="utf-8-sig")
    (tmp_path / "faulty.json").write_text(json.dumps(policy | {"rules": [{"if": "answer.txt", "then": "hold"}]}))
    first, again, shown, old, listed, tried, drafted, learned, faulty, missing, deleted, gone = signoff_many(
        tmp_path,
        ["policy", "put", "refunds", "draft.json", ""],
        ["policy", "put", "refunds", "-", "\ufeff" + json.dumps(policy | {"budget": budget})],
        ["policy", "show", "refunds", ""],
        ["policy", "show", "refunds", "--version", "1", ""],
        ["policy", "list", ""],
        ["policy", "dry-run", "refunds", ""],
        ["policy", "dry-run", "refunds", "draft.json", "--last", "5", ""],
        ["policy", "recommend", "refunds", ""],
        ["policy", "put", "refunds", "faulty.json", ""],
        ["policy", "put", "refunds", "none.json", ""],
        ["policy", "delete", "refunds", ""],
        ["policy", "delete", "refunds", ""],
    )
    assert first == (0, "refunds is saved as version 1, for echo.\n", "")
    assert again == (0, "refunds is saved as version 2, for echo.\n", "")
    # what is shown can be saved as it is
    defaults = {"confidence": 0.95, "harmless": [], "planted_rate": 0, "per": None}
    assert json.loads(shown[1])["budget"] == budget | defaults
    assert json.loads(old[1])["budget"] is None
    assert json.loads(old[1])["rules"] == policy["rules"]
    assert json.loads(shown[1]).keys() >= policy.keys()
    assert "name" not in json.loads(shown[1])
    assert learned[0] == 1
    assert "needs 20 answers that people found wrong" in learned[2]
    assert re.search(r"refunds +│ +2 +│ +echo +│ +1 +│ +0.02 of 10000", listed[1])
    for result in (tried, drafted):
        assert result[0] == 0
        assert {"policy refunds", "answers 0", "examined 0"} <= {*result[1].splitlines()}
    assert (faulty[0], missing[0]) == (1, 1)
    assert faulty[2].startswith("`rules[0].if`: line 1, column 8: there is no field `txt`")
    assert missing[2] == "FILE 'none.json' cannot be read: No such file or directory.\n"
    assert deleted == (0, "refunds is deleted.\n", "")
    assert gone[0] == 1
    assert "There is no policy 'refunds'" in gone[2]


def test_the_installed_script_lists_every_command() -> None:
    script = Path(sys.executable).with_name("signoff")
    result = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
    people = ("user", "token", "session")
    for command in ("serve", "work", "migrate", "doctor", "jobs", "review", *people, "model", "cache", "budget"):
        assert re.search(rf"\b{command}\b", result.stdout)


def test_a_file_of_functions_that_hangs_does_not_prevent_the_first_start(tmp_path: Path) -> None:
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions" / "custom_hangs.py").write_text("while True:\n    pass\n")
    more = {"SIGNOFF_FUNCTIONS_DIR": str(tmp_path / "functions"), "SIGNOFF_FUNCTION_SECONDS": "0.5"}
    with running_signoff(tmp_path, "serve", "--port", "0", **more) as server:
        text = read_welcome(server)
        [token] = set(TOKEN.findall(text))
        assert request_json(f"{url_in(text)}/api/functions", token)["data"] == []
        assert "functions" in stop(server, signal.SIGTERM)[1]


def test_a_server_keeps_its_data_across_a_restart(tmp_path: Path) -> None:
    # given a first start, which prints a token
    with running_signoff(tmp_path, "serve", "--port", "0") as first:
        text = read_welcome(first)
        assert "/signin/" not in text  # the output is no terminal
        url, [token] = url_in(text), set(TOKEN.findall(text))
        assert {"concat", "uppercase"} <= {
            function["name"] for function in request_json(f"{url}/api/functions", token)["data"]
        }
        # when three jobs are queued and held, the second with terminal control sequences
        words = ["one", "two [/red] \x1b[31m", "three"]
        ids = [request_json(f"{url}/enqueue", token, {"model": "echo", "input": word})["job_id"] for word in words]
        until(lambda: len(request_json(f"{url}/jobs?status=human", token)) == 3)
        # and the first two are reviewed from a terminal
        [jobs, review] = signoff_many(tmp_path, ["jobs", "--status", "human", ""], ["review", "a\nx\nbecause\nq\n"])
        assert review[0] == 0
        assert "answer:\n    two [/red] �[31m" in review[1]
        assert "\x1b" not in review[1] + jobs[1]
        assert [job_id for job_id in ids if job_id in jobs[1]] == ids
        # then the server applies the verdicts
        reviewed = [request_json(f"{url}/job?id={job_id}", token) for job_id in ids]
        assert [job["status"] for job in reviewed] == ["success", "fail", "human"]
        assert reviewed[1]["error"] == {"code": "rejected", "message": "because", "status": 403}
        code, error_output = stop(first, signal.SIGTERM)
    assert code in {0, -signal.SIGTERM}
    assert error_output == ""
    # when it starts again, then it prints no token, and the old token works
    with running_signoff(tmp_path, "serve", "--port", "0", "--no-work") as second:
        text = read_welcome(second)
        assert not TOKEN.search(text)
        assert request_json(f"{url_in(text)}/jobs", token) == reviewed
        assert stop(second, signal.SIGINT) == (0, "")


@pytest.mark.usefixtures("database")
def test_a_command_clears_the_cache_of_a_running_server(tmp_path: Path) -> None:
    with running_signoff(tmp_path, "serve", "--port", "0") as server:
        text = read_welcome(server)
        token = TOKEN.search(text)
        assert token
        url = f"{url_in(text)}/api/openai/v1/chat/completions"
        body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        assert [request_json(url, token[0], body)["cache_hit"] for _ in range(2)] == [False, True]

        results = signoff_many(
            tmp_path, ["cache", "size", ""], ["cache", "clear", "--model", "other", ""], ["cache", "clear", ""]
        )
        assert [code for code, _, _ in results] == [0, 0, 0]
        assert results[0][1].startswith("Answers: 1; bytes: ")
        assert [out for _, out, _ in results[1:]] == ["Deleted answers: 0.\n", "Deleted answers: 1.\n"]
        deadline, lookup_url = time.monotonic() + TIMEOUT_SECONDS, url.replace("openai/", "cache/", 1)
        while request_json(lookup_url, token[0], body):
            assert time.monotonic() < deadline


@pytest.mark.usefixtures("database")
def test_the_cache_commands_explain_that_a_memory_cache_belongs_to_its_process(tmp_path: Path) -> None:
    results = signoff_many(tmp_path, ["cache", "size", ""], ["cache", "clear", ""], SIGNOFF_CACHE="memory")
    assert [(code, out) for code, out, _ in results] == [
        (0, "Every process has its own cache; GET /api/cache returns the size of the one that responds.\n"),
        (0, "Every process drops its whole cache, whatever the options.\n"),
    ]


def test_a_server_whose_port_is_in_use_reports_it_and_creates_no_data(tmp_path: Path) -> None:
    # given a port that is in use
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, out, error_output = signoff(tmp_path, "serve", "--port", str(other.getsockname()[1]))
    # then the first start, which would print a token, has not happened
    assert (code, out) == (1, "")
    assert "is in use. Is Signoff running already? Another port: --port " in error_output
    assert is_one_line(error_output)
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("database")
def test_several_worker_processes_share_one_port_and_stop_together(tmp_path: Path) -> None:
    with running_signoff(tmp_path, "serve", "--port", "0", "--workers", "2") as server:
        text = read_welcome(server)
        url, [token] = url_in(text), set(TOKEN.findall(text))
        ids = [request_json(f"{url}/enqueue", token, {"model": "echo", "input": "hi"})["job_id"] for _ in range(4)]
        until(lambda: len(request_json(f"{url}/jobs?status=human", token)) == len(ids))
        assert stop(server, signal.SIGTERM)[0] == 0
    with pytest.raises(OSError, match="refused"):
        request_json(f"{url}/jobs", token)


@pytest.mark.usefixtures("database")
def test_a_worker_performs_jobs_and_stops_on_sigterm(tmp_path: Path) -> None:
    # given a job without a worker
    async def submit_job(services: Services) -> str:
        operator = Caller(user_id=0, token_id=0, role="admin", email="operator")
        job = await submit(services, Ask(door="test", caller=operator, body=b'"hello"', target="echo"))
        return job.id

    job_id = run_inside(tmp_path, submit_job)
    with running_signoff(tmp_path, "work", "--concurrency", "3") as worker:
        assert worker.stderr is not None
        assert "Working, 3 jobs at a time.\n" in worker.stderr
        # then the job is done
        until(lambda: run_inside(tmp_path, lambda services: load_job(services, job_id)).status == "success")
        assert stop(worker, signal.SIGTERM) == (0, "")
    assert run_inside(tmp_path, lambda services: load_job(services, job_id)).response is not None


def until(holds: Callable[[], bool]) -> None:
    """Return once `holds()` is true; fail after TIMEOUT_SECONDS."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
