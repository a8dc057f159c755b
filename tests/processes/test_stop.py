"""A stop of `signoff serve`: each caller gets a response, in the format of its door, and the log has no traceback."""

import json
import signal
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from processes.test_cli import TOKEN, read_welcome, running_signoff, signoff, stop, url_in
from support.processes import free_port
from support.service_supervisor import free_ports

MESSAGES = [{"role": "user", "content": "hi"}]
CALLS = {
    "held": ("/v1/chat/completions", {"model": "held", "messages": MESSAGES}),
    "held stream": ("/v1/chat/completions", {"model": "held", "messages": MESSAGES, "stream": True}),
    "long": ("/v1/chat/completions", {"model": "echo/delay=100", "messages": MESSAGES}),
    "held at the cached door": ("/api/openai/v1/chat/completions", {"model": "held", "messages": MESSAGES}),
    "prediction": ("/post/predict?id=echo/delay=100", {"x": 1}),
    "queued": ("/generate", {"meta": {"model": "echo/delay=100"}, "content": "hi"}),
}


class CallerThread(threading.Thread):
    """A caller who waits for the response to one request."""

    def __init__(self, url: str, token: str, body: Any) -> None:
        super().__init__(daemon=True)
        self._request = urllib.request.Request(url, json.dumps(body).encode(), {"authorization": f"Bearer {token}"})
        self.status, self.headers, self.body = 0, dict[str, str](), ""

    def run(self) -> None:
        """Send the request, and store the response."""
        try:
            response = urllib.request.urlopen(self._request, timeout=240)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            self.status, self.headers = response.status, {k.lower(): v for k, v in response.headers.items()}
            self.body = response.read().decode()


def test_a_server_that_waits_for_its_database_takes_no_requests_and_handles_sigterm(tmp_path: Path) -> None:
    # A proxy sends a refused request to another server; an accepted one would be lost if the start failed.
    # The first process of a container is not ended by a signal without a handler, and exits with this code by one.
    port = free_port()
    settings = {"SIGNOFF_DATABASE_URL": f"postgresql://u:p@127.0.0.1:{free_ports(1)[0]}/x"}
    with running_signoff(tmp_path, "serve", "--port", str(port), **settings) as server:
        assert server.stderr is not None
        assert any("database" in line.lower() for line in server.stderr)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        assert stop(server, signal.SIGTERM)[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("signals", "drain_seconds", "code"), [([signal.SIGTERM], "1", -15), ([signal.SIGINT] * 2, "1000", 130)]
)
def test_a_stop_answers_every_caller(
    signals: list[signal.Signals], drain_seconds: str, code: int, tmp_path: Path
) -> None:
    assert signoff(tmp_path, "model", "add", "held", "--kind", "echo", "--review", "always")[0] == 0
    settings = {"SIGNOFF_ECHO_FAULTS": "true", "SIGNOFF_DRAIN_SECONDS": drain_seconds}
    with running_signoff(tmp_path, "serve", "--port", "0", **settings) as server:
        text = read_welcome(server)
        url, [token] = url_in(text), set(TOKEN.findall(text))
        callers = {name: CallerThread(url + path, token, body) for name, (path, body) in CALLS.items()}
        for caller in callers.values():
            caller.start()
        jobs = list[Any]()
        while len(jobs) < len(CALLS):  # each call is known to the server
            request = urllib.request.Request(f"{url}/api/jobs", headers={"authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=240) as response:
                jobs = json.load(response)["data"]
            jobs = [job for job in jobs if job["status"] == "human" or job["model"] != "held"]
        server.send_signal(signals[0])
        assert server.stderr is not None
        assert any("draining" in line for line in server.stderr)  # after warnings, as of a cache that was slow
        returned, error_output = stop(server, signals[-1])
    for caller in callers.values():
        caller.join(240)
    assert returned in {code, 128 - code}
    assert "Traceback" not in error_output
    for name in ("held", "long", "held at the cached door", "prediction"):
        caller = callers[name]
        assert (caller.status, caller.headers["retry-after"]) == (503, "1"), name
        assert caller.headers["location"].startswith("/api/jobs/"), name
        assert "x-should-retry" not in caller.headers, name
    assert json.loads(callers["held"].body)["error"]["code"] == "review_pending"
    last_event = callers["held stream"].body.rpartition("data: ")[2]  # its head was sent when it was held
    assert json.loads(last_event)["error"]["code"] == "review_pending"
    assert json.loads(callers["long"].body)["error"]["code"] == "interrupted"
    assert json.loads(callers["held at the cached door"].body)["code"] == "review_pending"
    assert callers["queued"].status == 504
