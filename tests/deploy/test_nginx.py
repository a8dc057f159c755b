"""`deploy/nginx/signoff.conf` in a real nginx: which requests go on to the next server, and which never do."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.paths import DEPLOY, ROOT
from support.certificates import make_certificate
from support.service_supervisor import MissingError, installed

BODY = b'{"model": "echo"}'
CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream signoff {{
        zone signoff 64k;
        server 127.0.0.1:{first} max_fails=0;
        server 127.0.0.1:{second} max_fails=0 backup;
    }}
    {server}
}}
"""


class Upstream:
    """A server that notes the requests that it gets; it answers each, closes the connection, or stays silent."""

    def __init__(self, behaviour: str) -> None:
        self.requests = list[str]()
        self._behaviour = behaviour
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._connections = list[socket.socket]()
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                head = connection.makefile("rb")
                self.requests.append(head.readline().decode().rstrip())
                while head.readline().strip():
                    pass
                if self._behaviour == "answers":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                if self._behaviour == "is silent":
                    self._connections.append(connection)
                else:
                    head.close()
                    connection.close()

    def close(self) -> None:
        """Stop to listen, and drop the connections."""
        self._socket.shutdown(socket.SHUT_RDWR)
        for each in (*self._connections, self._socket):
            each.close()


@pytest.fixture
def second() -> Iterator[Upstream]:
    """Yield the server that gets what the first one does not take."""
    with contextlib.closing(Upstream("answers")) as server:
        yield server


@pytest.fixture
def program() -> str:
    """Return the path of nginx; skip the test if it is missing and cannot be installed."""
    try:
        path = installed("nginx-light", find_nginx)
    except MissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    return str(path)


def find_nginx() -> Path | None:
    """Return the path of nginx, which is not on the PATH of every user; None if it is missing."""
    path = shutil.which("nginx", path=f"{os.defpath}:/usr/sbin")
    return None if path is None else Path(path)


def write_configuration(folder: Path, server: str, *, first: int = 8001, second: int = 8002) -> Path:
    """Write a configuration of nginx with this server, and upstream servers at these ports; return its path."""
    path = folder / "nginx.conf"
    path.write_text(CONFIGURATION.format(folder=folder, first=first, second=second, server=server))
    return path


def post(program: str, folder: Path, first: int, second: int) -> int:
    """Return the status of a POST through nginx, with shorter times than those of the file."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = (DEPLOY / "nginx" / "signoff.conf").read_text().replace("listen 8080;", f"listen 127.0.0.1:{port};")
        server = re.sub(r"(proxy_(?:connect|read)_timeout) \d+s;", r"\1 300ms;", server)
        # nginx takes over the socket, so connections wait in it until nginx has started
        command = [
            program,
            "-p",
            str(folder),
            "-c",
            str(write_configuration(folder, server, first=first, second=second)),
        ]
        number = listener.fileno()
        process = subprocess.Popen(
            command, env={"NGINX": f"{number};"}, pass_fds=[number], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/api/jobs", BODY)
        return connection.getresponse().status
    finally:
        process.terminate()
        process.communicate()


def test_a_request_goes_on_to_the_next_server_if_one_refuses_connections(
    program: str, tmp_path: Path, second: Upstream
) -> None:
    closed = Upstream("answers")
    closed.close()
    assert post(program, tmp_path, closed.port, second.port) == 200
    assert second.requests == ["POST /api/jobs HTTP/1.1"]


def test_a_request_goes_on_to_the_next_server_if_one_does_not_take_connections(
    program: str, tmp_path: Path, second: Upstream
) -> None:
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket())
        busy.bind(("127.0.0.1", 0))
        busy.listen(0)
        for _ in range(3):  # these fill the queue of connections that nobody accepts
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(busy.getsockname())
        assert post(program, tmp_path, busy.getsockname()[1], second.port) == 200
    assert second.requests == ["POST /api/jobs HTTP/1.1"]


@pytest.mark.parametrize(("behaviour", "status"), [("closes the connection", 502), ("is silent", 504)])
def test_a_post_that_was_sent_is_not_sent_again(
    behaviour: str, status: int, program: str, tmp_path: Path, second: Upstream
) -> None:
    with contextlib.closing(Upstream(behaviour)) as first:
        assert post(program, tmp_path, first.port, second.port) == status
        assert first.requests == ["POST /api/jobs HTTP/1.1"]
    assert second.requests == []


def test_nginx_accepts_the_lines_of_the_guide_that_end_tls(program: str, tmp_path: Path) -> None:
    make_certificate(tmp_path / "both.pem")
    guide = (ROOT / "docs" / "how-to" / "deploy.md").read_text().partition("### End TLS in nginx")[2]
    lines = re.sub(
        r"/etc/ssl/signoff\.(pem|key)", f"{tmp_path}/both.pem", guide.split("```")[1].removeprefix("nginx\n")
    )
    server = (DEPLOY / "nginx" / "signoff.conf").read_text().replace("listen 8080;", lines)
    command = [program, "-t", "-p", str(tmp_path), "-c", str(write_configuration(tmp_path, server))]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
