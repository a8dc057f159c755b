"""Mock and load generator, which are compiled when they are first used, and the figures of one load."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from process_tree import ProcessTree

HERE = Path(__file__).parent
BUILT = HERE.parent / ".bench" / "native"
MARK = "@" * 12
"""Text in a prompt that the generator replaces with another number for each request."""
EVENTS = 50
"""Events of a stream of the mock, without its end."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Description of the requests of one round."""

    connections: int = 64
    """Connections, each with one request at a time."""
    rate: int = 0
    """Requests per second that are due whatever the answers take; 0: each connection asks again at once."""
    prompt_bytes: int = 100
    """Size of the prompt."""
    equal: bool = False
    """True if all requests are equal; otherwise each has a prompt of its own."""
    stream: bool = False
    """True for streams of EVENTS events."""
    pace_ms: int = 0
    """Milliseconds between the events of a stream; 0: the mock sends as fast as it is read."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of one round."""

    rate: float
    """Answers per second."""
    answers: int
    """Number of answers, with those that came after the end."""
    due: int
    """Number of requests that were due."""
    failures: int
    """Number of answers with another status or too few events, and of those that did not come."""
    first_ms: float
    """Median time until the first bytes of an answer, in milliseconds."""
    p50_ms: float
    """Median latency in milliseconds."""
    p99_ms: float
    """Latency in milliseconds that 99 % of the answers do not exceed."""


def native(name: str) -> Path:
    """Return the compiled program `name`, which is built if it is older than its source."""
    source, program = HERE / "native" / f"{name}.c", BUILT / name
    newest = max(path.stat().st_mtime for path in (source, source.with_name("http.h")))
    if program.exists() and program.stat().st_mtime >= newest:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("A C compiler is missing (on Debian: apt install gcc libc6-dev).")
    BUILT.mkdir(parents=True, exist_ok=True)
    draft = BUILT / f".{name}.{os.getpid()}"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", draft, source], check=True)
    draft.replace(program)
    return program


@contextlib.contextmanager
def mock(core: int | None, folder: Path) -> Iterator[int]:
    """Run the mock on a core, and yield its port."""
    process = ProcessTree([native("mock")], core=core, folder=folder)
    try:
        yield int(process.wait_for(rb"(\d+)\n")[1])
    finally:
        process.close()


def template(load: Load, *, path: str, model: str, port: int, headers: Mapping[str, str]) -> bytes:
    """Return a request as it goes over the wire; it contains MARK unless all requests are equal."""
    pace = f"pace_ms={load.pace_ms} " if load.pace_ms else ""
    prompt = f"{pace}{'the same' if load.equal else MARK} "
    prompt += ("word " * (load.prompt_bytes // 5))[: max(0, load.prompt_bytes - len(prompt))]
    content = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
    body = json.dumps({**content, "stream": True} if load.stream else content, separators=(",", ":"))
    fields = {"host": f"127.0.0.1:{port}", "content-type": "application/json", "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**fields, **headers}.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n{body}".encode()


def run_load(
    load: Load, request: Path, port: int, *, seconds: float, core: int | None, warmup: float = 0, requests: int = 0
) -> Figures:
    """Send the request of a file for `warmup` and `seconds`, or so many of them at most, and return the figures."""
    least = 0 if load.rate or requests else 2 * load.connections
    events = EVENTS if load.stream else 0
    words = ["--port", port, "--connections", load.connections, "--rate", load.rate, "--seconds", seconds]
    words += ["--warmup", warmup, "--least", least, "--requests", requests, "--events", events, "--template", request]
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    command = [*pinned, str(native("load")), *(str(word) for word in words)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = parse(result.stdout)
    if figures.failures:
        print(f"  {figures.failures} of {figures.due} failed: {result.stderr[:400].strip()}", flush=True)
    return figures


def parse(text: str) -> Figures:
    """Return the figures that the generator printed.

    If all answers came after the end, because they take so long, their rate is that until the last of them.
    """
    values = json.loads(text)
    in_time, late = (
        values["in_time"] / values["seconds"],
        values["requests"] / values["last"] if values["requests"] else 0,
    )
    return Figures(
        rate=round(in_time or late, 2),
        answers=values["requests"],
        due=values["due"],
        failures=values["failures"],
        first_ms=values["first_p50_us"] / 1000,
        p50_ms=values["p50_us"] / 1000,
        p99_ms=values["p99_us"] / 1000,
    )
