"""The command line, as a person and a script meet it: real processes, in a folder of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from signoff import __version__
from signoff.core.access import Caller
from signoff.core.api_tokens import is_well_formed
from signoff.core.ask import Ask
from signoff.server.bootstrap import open_services
from signoff.settings import Settings
from signoff.work.admin.people import identify, sign_in
from signoff.work.jobs.query import load_job
from signoff.work.services import Services
from signoff.work.submit import submit

T = TypeVar("T")
PATIENCE_SECONDS = 60.0
TOKEN = re.compile(r"sg_\w{38}")

# Several commands in one process: a start costs about a second. Prints a JSON list of [exit code, stdout, stderr].
MANY = """
import contextlib, io, json, sys
from signoff.cli import main
told = []
for *words, stdin in json.loads(sys.argv[1]):
    sys.argv, sys.stdin, code = ["signoff", *words], io.StringIO(stdin), 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code
    told.append([code or 0, out.getvalue(), err.getvalue()])
print(json.dumps(told))
"""


def environment(folder: Path, more: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SIGNOFF_", "INNER_LLM"))}
    return {**inherited, "SIGNOFF_DATA_DIR": str(folder / "data"), "COLUMNS": "200", **more}


def signoff(folder: Path, *words: str, stdin: str = "", **more: str) -> tuple[int, str, str]:
    """The exit code, the output and the complaints of one command."""
    command = [sys.executable, "-m", "signoff", *words]
    told = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, more),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return told.returncode, told.stdout, told.stderr


def many(folder: Path, *commands: list[str], **more: str) -> list[tuple[int, str, str]]:
    """The same of several commands; the last word of each is what it reads."""
    told = subprocess.run(
        [sys.executable, "-c", MANY, json.dumps(commands)],
        cwd=folder,
        env=environment(folder, more),
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return [tuple(one) for one in json.loads(told.stdout)]


@contextlib.contextmanager
def process(folder: Path, *words: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command that stays; killed if it still runs at the end."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "signoff", *words]
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder, more), stdout=pipe, stderr=pipe, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def stopped(running: subprocess.Popen[str], how: signal.Signals) -> tuple[int, str]:
    """The exit code and the last complaints of a process that is asked to stop; fails if it does not."""
    running.send_signal(how)
    _, complaints = running.communicate(timeout=PATIENCE_SECONDS)
    return running.returncode, complaints


def welcome(running: subprocess.Popen[str]) -> str:
    """What a server says when it starts, up to its last line."""
    assert running.stdout is not None
    lines = list[str]()
    while not lines or "/enqueue" not in lines[-1]:
        lines.append(running.stdout.readline())
        assert lines[-1], running.communicate()
    return "".join(lines)


def address_in(text: str) -> str:
    found = re.search(r"http://[\d.]+:\d+", text)
    assert found
    return found[0]


def asked(url: str, token: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return json.loads(answer.read())


def inside(folder: Path, look: Callable[[Services], Awaitable[T]]) -> T:
    """What `look` finds in the data of `folder`."""

    async def run() -> T:
        async with open_services(Settings(data_dir=folder / "data")) as services:
            return await look(services)

    return asyncio.run(run())


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((folder / "data").iterdir()) if path.is_file())


def is_one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


def test_people_get_tokens_and_passwords_which_are_nowhere_in_clear(tmp_path: Path) -> None:
    # given a token for somebody new
    code, token, complaints = signoff(tmp_path, "token", "create", "Ann@example.com", "--role", "user", "--quiet")
    assert (code, complaints) == (0, "")
    assert is_well_formed(token.removesuffix("\n"))
    # when more is asked for them
    escalated, named, passed, weak, promoted, kept, nobody, nonsense = many(
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
    # then they get no more rights than they have
    assert escalated[:2] == (1, "")
    assert "`role` must not exceed the role of ann@example.com, which is user (got admin)." in escalated[2]
    assert named[0] == 0
    assert named[1].endswith("The token is not shown again.\n")
    assert passed == (0, "ann@example.com is a user.\n", "")
    assert (weak[:2], promoted[1]) == ((1, ""), "ann@example.com is a reviewer.\n")
    # and a new password takes no role away
    assert kept == (0, "ann@example.com is a reviewer.\n", "")
    for refused in (escalated, weak, nobody, nonsense):
        assert refused[0] == 1
        assert is_one_line(refused[2])

    async def callers(services: Services) -> list[Caller]:
        session = await sign_in(services, "ann@example.com", "battery staple")
        return [await identify(services, token.strip()), await identify(services, session, "session")]

    assert [caller.role for caller in inside(tmp_path, callers)] == ["user", "reviewer"]
    for secret in (token.strip(), named[1].split()[0], "correct horse", "battery staple"):
        assert secret.encode() not in on_disk(tmp_path)


def test_models_come_and_go_and_their_keys_are_sealed(tmp_path: Path) -> None:
    # given a model with a key, one for a prefix, and one that is a program
    url = "https://api.example.com/v1"
    told = many(
        tmp_path,
        ["migrate", ""],
        ["migrate", ""],
        ["model", "add", "gpt-*", "--kind", "openai", "--url", url, "--key-stdin", "sk-very-secret-key\n"],
        ["model", "add", "mine", "--kind", "subprocess", "--command", "run 'a b' --port {port}", "--serve", ""],
        ["model", "add", "fake", "--kind", "echo", "--review", "always", "--default", ""],
        ["model", "list", ""],
        ["model", "remove", "mine", ""],
        ["model", "remove", "mine", ""],
        ["model", "list", ""],
        ["jobs", ""],
        ["review", ""],
        ["doctor", ""],
    )
    assert [code for code, _, _ in told] == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert told[0] == told[1] == (0, "The schema is up to date.\n", "")
    listed, removed, again, after, jobs, review, doctor = told[5:]
    rows = {row.split()[1]: row for row in listed[1].splitlines() if "│" in row}
    assert url in rows["gpt-*"]
    assert "run 'a b' --port '{port}'" in rows["mine"]
    assert "always" in rows["fake"]
    assert "yes" in rows["fake"]
    assert "echo" in rows
    # then one that was removed is gone, and says so when it is removed again
    assert removed[1] == "mine is removed.\n"
    assert again[1:] == ("", "No model is registered as 'mine'; GET /api/models lists all models.\n")
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

    # and the key stands in the database, but not in clear
    assert inside(tmp_path, key) == "sk-very-secret-key"
    assert b"sk-very-secret-key" not in on_disk(tmp_path)


def test_what_makes_no_sense_is_refused_in_one_line(tmp_path: Path) -> None:
    openai = ["model", "add", "m", "--kind", "openai"]
    program = ["model", "add", "m", "--kind", "subprocess", "--serve", "--command"]
    told = many(
        tmp_path,
        ["token", "create", "a@b.c", "--role", "boss", ""],
        ["user", "create", "a@b.c", "--role", "boss", ""],
        ["jobs", "--status", "done", ""],
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
    )
    for code, out, complaints in told:
        assert (code, out) == (1, "")
        assert is_one_line(complaints)
    assert told[0][2] == "--role must be one of admin, reviewer, user (got 'boss').\n"
    assert not (tmp_path / "data").exists()


def test_settings_and_places_that_make_no_sense_are_refused_in_one_line(tmp_path: Path) -> None:
    # given a port that is no number: a command says so
    code, out, complaints = signoff(tmp_path, "jobs", SIGNOFF_PORT="many")
    assert (code, out) == (1, "")
    assert complaints.startswith("port: ")
    assert is_one_line(complaints)
    # given a data folder below a file: so does the doctor, and a command
    (tmp_path / "file").touch()
    doctor, jobs = many(tmp_path, ["doctor", ""], ["jobs", ""], SIGNOFF_DATA_DIR=str(tmp_path / "file" / "data"))
    assert doctor[0] == 1
    assert re.search(r"ok +│ Python", doctor[1])
    assert re.search(r"BAD │ data folder", doctor[1])
    assert re.search(r"BAD │ database", doctor[1])
    assert (jobs[0], is_one_line(jobs[2])) == (1, True)


def test_the_version_is_printed_and_the_option_is_documented(tmp_path: Path) -> None:
    code, printed, _ = signoff(tmp_path, "--version")
    assert (code, printed.strip()) == (0, __version__)
    assert "`signoff --version`" in (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def test_the_script_knows_every_command() -> None:
    script = Path(sys.executable).with_name("signoff")
    told = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    for command in ("serve", "work", "migrate", "doctor", "jobs", "review", "user", "token", "model", "cache"):
        assert re.search(rf"\b{command}\b", told.stdout)


def test_a_file_of_functions_that_hangs_keeps_no_server_from_its_first_start(tmp_path: Path) -> None:
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions" / "custom_hangs.py").write_text("while True:\n    pass\n")
    more = {"SIGNOFF_FUNCTIONS_DIR": str(tmp_path / "functions"), "SIGNOFF_FUNCTION_SECONDS": "0.5"}
    with process(tmp_path, "serve", "--port", "0", **more) as server:
        text = welcome(server)
        [token] = set(TOKEN.findall(text))
        assert asked(f"{address_in(text)}/api/functions", token)["data"] == []
        assert "functions" in stopped(server, signal.SIGTERM)[1]


def test_a_server_keeps_everything_from_one_start_to_the_next(tmp_path: Path) -> None:
    # given a first start, which shows a token
    with process(tmp_path, "serve", "--port", "0") as first:
        text = welcome(first)
        url, [token] = address_in(text), set(TOKEN.findall(text))
        assert {"concat", "uppercase"} <= {
            function["name"] for function in asked(f"{url}/api/functions", token)["data"]
        }
        # when three jobs are queued and held, the second with words that would steer a terminal
        words = ["one", "two [/red] \x1b[31m", "three"]
        ids = [asked(f"{url}/enqueue", token, {"model": "echo", "input": word})["job_id"] for word in words]
        until(lambda: len(asked(f"{url}/jobs?status=human", token)) == 3)
        # and are reviewed from a terminal, but for the last
        [jobs, review] = many(tmp_path, ["jobs", "--status", "human", ""], ["review", "a\nx\nbecause\nq\n"])
        assert review[0] == 0
        assert "answer:  two [/red] �[31m" in review[1]
        assert "\x1b" not in review[1] + jobs[1]
        assert [job_id for job_id in ids if job_id in jobs[1]] == ids
        # then the verdicts are the server's
        seen = [asked(f"{url}/job?id={job_id}", token) for job_id in ids]
        assert [job["status"] for job in seen] == ["success", "fail", "human"]
        assert seen[1]["error"] == {"code": "rejected", "message": "because", "status": 403}
        code, complaints = stopped(first, signal.SIGTERM)
    assert code in {0, -signal.SIGTERM}
    assert complaints == ""
    # when it starts again: then it shows no token, and the old one finds everything
    with process(tmp_path, "serve", "--port", "0", "--no-work") as second:
        text = welcome(second)
        assert not TOKEN.search(text)
        assert asked(f"{address_in(text)}/jobs", token) == seen
        assert stopped(second, signal.SIGINT) == (0, "")


def test_answers_are_forgotten_from_the_terminal_by_a_server_that_runs(tmp_path: Path) -> None:
    with process(tmp_path, "serve", "--port", "0") as server:
        text = welcome(server)
        token = TOKEN.search(text)
        assert token
        url = f"{address_in(text)}/api/openai/v1/chat/completions"
        body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        assert [asked(url, token[0], body)["cache_hit"] for _ in range(2)] == [False, True]

        told = many(tmp_path, ["cache", "size", ""], ["cache", "clear", "--model", "other", ""], ["cache", "clear", ""])
        assert [code for code, _, _ in told] == [0, 0, 0]
        assert told[0][1].startswith("Answers: 1; bytes: ")
        assert [out for _, out, _ in told[1:]] == ["Deleted answers: 0.\n", "Deleted answers: 1.\n"]
        until_gone, look = time.monotonic() + PATIENCE_SECONDS, url.replace("openai/", "cache/", 1)
        while asked(look, token[0], body):
            assert time.monotonic() < until_gone


def test_of_answers_in_memory_each_process_knows_its_own(tmp_path: Path) -> None:
    told = many(tmp_path, ["cache", "size", ""], ["cache", "clear", ""], SIGNOFF_CACHE="memory")
    assert [(code, out) for code, out, _ in told] == [
        (0, "Every process has its own cache; GET /api/cache returns the size of the one that responds.\n"),
        (0, "Every process clears its own cache.\n"),
    ]


def test_a_server_without_its_port_says_so_and_makes_nothing(tmp_path: Path) -> None:
    # given a port that somebody else has
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, complaints = signoff(tmp_path, "serve", "--port", str(taken.getsockname()[1]))
    # then the first start, which would show a token, has not happened
    assert (code, out) == (1, "")
    assert "Cannot listen on 127.0.0.1: Address already in use" in complaints
    assert is_one_line(complaints)
    assert not (tmp_path / "data").exists()


def test_several_processes_are_one_server_and_stop_together(tmp_path: Path) -> None:
    with process(tmp_path, "serve", "--port", "0", "--workers", "2") as server:
        text = welcome(server)
        url, [token] = address_in(text), set(TOKEN.findall(text))
        ids = [asked(f"{url}/enqueue", token, {"model": "echo", "input": "hi"})["job_id"] for _ in range(4)]
        until(lambda: len(asked(f"{url}/jobs?status=human", token)) == len(ids))
        assert stopped(server, signal.SIGTERM)[0] == 0
    with pytest.raises(OSError, match="refused"):
        asked(f"{url}/jobs", token)


def test_a_worker_alone_does_the_work_and_stops_when_told(tmp_path: Path) -> None:
    # given a job that nobody works on
    async def submitted(services: Services) -> str:
        operator = Caller(user_id=0, token_id=0, role="admin", email="operator")
        job = await submit(services, Ask(door="test", caller=operator, body=b'"hello"', target="echo"))
        return job.id

    job_id = inside(tmp_path, submitted)
    with process(tmp_path, "work", "--concurrency", "3") as worker:
        assert worker.stderr is not None
        assert worker.stderr.readline() == "Working, 3 jobs at a time.\n"
        # then it is done
        until(lambda: inside(tmp_path, lambda services: load_job(services, job_id)).status == "success")
        assert stopped(worker, signal.SIGTERM) == (0, "")
    assert inside(tmp_path, lambda services: load_job(services, job_id)).response is not None


def until(holds: Callable[[], bool]) -> None:
    """Returns once `holds`; fails after a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
