"""Python processes that are forked from one that has imported the product, which saves most of what a start costs.

Such a process is what `python -m signoff` starts: it has its own arguments, environment, folder and descriptors, and is
a child of the process that starts it. A template process for each process of the tests imports the product once. To
start a process, it forks twice and lets the process in between end, so that the tests adopt the process.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
BYTE_ORDER = "little"
LENGTH_BYTES = 4
"""Size of the length that precedes a message, in bytes."""
MODULES = (
    "signoff.deliverers.http",
    "signoff.deliverers.topics",
    "signoff.engines.anyllm",
    "signoff.engines.http",
    "signoff.engines.jsonl",
    "signoff.engines.subprocess",
    "signoff.engines.upstream",
    "signoff.server.bootstrap",
    "signoff.server.http",
    "signoff.server.serving",
    "signoff.server.start_warnings",
    "signoff.server.worker",
    "signoff.stores.postgres",
    "signoff.stores.sqlite",
    "uvicorn",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "typer",
    "rich.table",
)
"""Modules that read no environment variable when they are imported; `signoff.cli` does."""

ONE_AT_A_TIME = threading.Lock()


class PreloadedProcess(subprocess.Popen[Any]):
    """A Python process with the product imported; otherwise like its base class.

    The command is that of a new Python process: `sys.executable`, then `-m` and a module or `-c` and a text, and its
    arguments. Elsewhere than on Linux, that process is started.
    """

    def _execute_child(self, args: Any, *rest: Any) -> None:
        if sys.platform != "linux":
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        _, _, _, _, cwd, env, _, _, _, *descriptors = rest[:15]
        stdin_read, stdin_write, stdout_read, stdout_write, stderr_read, stderr_write = descriptors
        environment = dict(os.environ if env is None else env)
        request = {"arguments": args[1:], "folder": os.fspath(cwd or Path.cwd()), "environment": environment}
        streams = [own if own != -1 else number for number, own in enumerate((stdin_read, stdout_write, stderr_write))]
        self.pid = start(request, streams)
        self._child_created = True
        self._close_pipe_fds(stdin_read, stdin_write, stdout_read, stdout_write, stderr_read, stderr_write)


def start(request: dict[str, Any], streams: list[int]) -> int:
    """Start the process that `request` describes as a child of this one, and return its pid."""
    message, libc = json.dumps(request).encode(), ctypes.CDLL(None)
    with ONE_AT_A_TIME:
        template = template_process()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(template, [len(message).to_bytes(LENGTH_BYTES, BYTE_ORDER)], streams)
            template.sendall(message)
            return int.from_bytes(receive(template, LENGTH_BYTES), BYTE_ORDER)
        finally:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@functools.cache
def template_process() -> socket.socket:
    """Return the connection to the template of this process, which ends when the connection is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.set_inheritable(True)
        nothing = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in range(2)]
        command = [sys.executable, "-P", __file__, str(theirs.fileno())]
        os.posix_spawn(sys.executable, command, os.environ, file_actions=nothing)
    return ours


def receive(connection: socket.socket, size: int) -> bytes:
    """Receive exactly `size` bytes; raise EOFError if the connection is closed before."""
    data = b""
    while len(data) < size:
        if not (chunk := connection.recv(size - len(data))):
            raise EOFError
        data += chunk
    return data


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork a process for each request until the connection is closed. Return the request in the forked process."""
    while True:
        length, streams, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 3)
        if not length:
            sys.exit()
        request = json.loads(receive(connection, int.from_bytes(length, BYTE_ORDER)))
        reading, writing = os.pipe()
        if (between := os.fork()) == 0:
            if (process := os.fork()) != 0:
                os.write(writing, process.to_bytes(LENGTH_BYTES, BYTE_ORDER))
                os._exit(0)
            connection.detach()
            become(request, streams)
            return request
        os.close(writing)
        pid = os.read(reading, LENGTH_BYTES)
        os.waitpid(between, 0)
        for descriptor in (reading, *streams):
            os.close(descriptor)
        connection.sendall(pid)


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Take the folder, the environment and the standard streams of the request."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    tempfile.tempdir = None
    sys.path[:0] = [request["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.orig_argv = [sys.executable, *request["arguments"]]


def main() -> None:
    """Import the product, make its routes and serve requests; in a forked process, run what was requested."""
    for module in MODULES:
        __import__(module)
    sys.modules["signoff.server.http"]._litestar_app()  # the routes, which all processes have in common
    # Otherwise each process would visit, and so copy, all of these objects when it ends.
    gc.freeze()
    try:
        kind, program, *arguments = serve(socket.socket(fileno=int(sys.argv[1])))["arguments"]
    except KeyboardInterrupt:  # the keyboard interrupts the tests
        return
    run(kind, program, arguments)


def run(kind: str, program: str, arguments: list[str]) -> None:
    """Run a module or a text, as Python does with `-m` and `-c`."""
    if kind == "-m":
        sys.argv = [program, *arguments]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *arguments]
        exec(program, {"__name__": "__main__"})


if __name__ == "__main__":
    main()
