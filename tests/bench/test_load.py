"""The mock and the load generator of the benchmarks, and what the generator prints."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from load import EVENTS, MARK, Load, native, parse, run_load, template


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Yield the port of a mock that runs."""
    if shutil.which("cc") is None and "CI" not in os.environ:
        pytest.skip("A C compiler is missing (on Debian: apt install gcc libc6-dev).")
    with subprocess.Popen([native("mock")], stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())
        process.kill()


def write_request(folder: Path, load: Load, port: int) -> Path:
    """Write the request of a load to the mock, and return its file."""
    request = folder / "request"
    request.write_bytes(template(load, path="/v1/chat/completions", model="bench", port=port, headers={}))
    return request


@pytest.mark.parametrize("load", [Load(), Load(stream=True), Load(prompt_bytes=300_000), Load(rate=500)])
def test_the_mock_answers_each_request_of_the_generator(port: int, load: Load, tmp_path: Path) -> None:
    request = write_request(tmp_path, load, port)
    figures = run_load(load, request, port, seconds=60, core=None, requests=100)
    assert (figures.answers, figures.due, figures.failures) == (100, 100, 0)
    assert 0 < figures.first_ms <= figures.p50_ms <= figures.p99_ms


def test_a_round_of_slow_answers_lasts_until_each_connection_has_had_two(port: int, tmp_path: Path) -> None:
    load = Load(connections=4, stream=True, pace_ms=10)
    figures = run_load(load, write_request(tmp_path, load, port), port, seconds=0.1, core=None)
    assert figures.failures == 0
    assert figures.answers >= 8
    assert 0 < figures.rate <= 8.5


def test_a_stream_with_too_few_events_is_a_failure(port: int, tmp_path: Path) -> None:
    request = write_request(tmp_path, Load(), port)
    figures = run_load(Load(stream=True), request, port, seconds=60, core=None, requests=10)
    assert figures.failures == 10


def test_another_status_is_a_failure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        request = write_request(tmp_path, Load(), port)
        words = ["--port", port, "--seconds", 60, "--requests", 1, "--template", request]
        command = [native("load"), *(str(word) for word in words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
            output, errors = process.communicate()
            connection.close()
    assert parse(output).failures == 1
    assert "503" in errors


def test_a_latency_at_a_fixed_rate_counts_from_when_the_request_was_due(port: int, tmp_path: Path) -> None:
    load = Load(connections=1, rate=1000, stream=True, pace_ms=1)
    figures = run_load(load, write_request(tmp_path, load, port), port, seconds=60, core=None, requests=20)
    assert figures.failures == 0
    # The requests are due within 20 ms, and each keeps the only connection busy for 50.
    assert figures.p99_ms > 19 * 50 - 20


def test_each_request_has_its_own_prompt_unless_all_are_equal() -> None:
    assert template(Load(), path="/", model="m", port=1, headers={}).count(MARK.encode()) == 1
    assert MARK.encode() not in template(Load(equal=True), path="/", model="m", port=1, headers={})


def test_a_request_has_the_size_and_the_fields_that_were_asked_for() -> None:
    load = Load(prompt_bytes=50_000, stream=True, pace_ms=10)
    head, _, body = template(load, path="/v1", model="m", port=7, headers={"x-a": "b"}).partition(b"\r\n\r\n")
    content = json.loads(body)
    assert head.startswith(b"POST /v1 HTTP/1.1\r\nhost: 127.0.0.1:7\r\n")
    assert {b"x-a: b", b"content-length: %d" % len(body)} < {*head.split(b"\r\n")}
    assert len(content["messages"][0]["content"]) == 50_000
    assert content["messages"][0]["content"].startswith("pace_ms=10 ")
    assert content["stream"] is True


def test_the_figures_of_the_generator_are_in_milliseconds() -> None:
    values = {"seconds": 2.0, "last": 2.2, "requests": 110, "in_time": 100, "due": 110, "failures": 1, "reconnects": 0}
    values |= {"p50_us": 1500, "p90_us": 2000, "p99_us": 2500, "max_us": 9000, "first_p50_us": 1000}
    figures = parse(json.dumps(values))
    assert (figures.rate, figures.answers, figures.due, figures.failures) == (50, 110, 110, 1)
    assert (figures.first_ms, figures.p50_ms, figures.p99_ms) == (1.0, 1.5, 2.5)


def test_answers_that_all_came_late_have_a_rate() -> None:
    values = {"seconds": 1.0, "last": 4.0, "requests": 64, "in_time": 0, "due": 64, "failures": 0, "reconnects": 0}
    values |= dict.fromkeys(("p50_us", "p90_us", "p99_us", "max_us", "first_p50_us"), 0)
    assert parse(json.dumps(values)).rate == 16
    assert parse(json.dumps({**values, "requests": 0, "last": 0.0})).rate == 0


def test_a_stream_of_the_mock_has_as_many_events_as_are_expected() -> None:
    assert f"#define EVENTS {EVENTS}\n" in (Path(native("mock")).parents[2] / "bench/native/mock.c").read_text()
