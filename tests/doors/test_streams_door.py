"""The native door of streams: adding, changing and deleting them, secrets in their URLs, the AsyncAPI document."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema

from contracts.test_transport import request_message
from fakes.topic_clients import RabbitClient
from signoff.core.stream import Stream, public_address, stream_fault
from signoff.settings import BadSettings, load
from support.database_files import is_in_clear
from support.live_server import live, until

pytestmark = pytest.mark.anyio

STREAM = {"name": "one", "url": "amqp://ann:p4ssword@127.0.0.1:9/", "requests": "in", "responses": "out"}


@pytest.fixture
async def wire(rabbitmq_url: str, prefix: str, anyio_backend: object) -> AsyncIterator[RabbitClient]:
    """Yield a client at the other end of a stream over RabbitMQ."""
    async with RabbitClient(rabbitmq_url, prefix).connected() as wire:
        yield wire


def declaration(wire: RabbitClient, name: str = "one") -> dict[str, Any]:
    return {"name": name, "url": wire.url, "requests": wire.requests, "responses": wire.responses}


async def test_a_stream_that_is_added_at_run_time_is_listened_to_until_it_is_deleted(
    tmp_path: Path, wire: RabbitClient
) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        status, response = await server.ask("POST", "/api/streams", token, json=declaration(wire))
        assert (status, response["transport"], response["declared"]) == (201, "rabbitmq", "at run time")

        async def is_listened_to() -> bool | None:
            return (await server.ask("GET", "/api/streams/one", token))[1]["listening"] or None

        await until(is_listened_to)
        await wire.send(request_message())
        assert (await wire.get()).body["status_code"] == 200

        # after a change, the stream still listens
        assert (await server.ask("PATCH", "/api/streams/one", token, json={"max_handlers": 2}))[1]["max_handlers"] == 2
        await wire.send(request_message("after the change"))
        assert (await wire.get()).body["metadata"] == {"n": "after the change"}

        assert (await server.ask("DELETE", "/api/streams/one", token))[0] == 204
        assert (await server.ask("GET", "/api/streams/one", token))[0] == 404

        async def is_gone() -> bool | None:
            return "stream:one" not in (await server.ask("GET", "/health/ready", token))[1] or None

        await until(is_gone)


async def test_readiness_names_streams_only_for_callers_with_a_token(tmp_path: Path) -> None:
    async with live(tmp_path, anonymous_role="admin") as server:
        token = await server.token()
        assert (await server.ask("POST", "/api/streams", await server.token("admin"), json=STREAM))[0] == 201

        async def names() -> set[str]:
            return set((await server.ask("GET", "/health/ready", token))[1])

        async def has_begun() -> bool | None:
            return "stream:one" in await names() or None

        await until(has_begun)
        assert await names() == {"store", "broker", "stream:one"}
        for more in ({}, {"headers": {"authorization": "Bearer sg_unknown"}}):
            status, parts = await server.ask("GET", "/health/ready", **more)
            assert (status, parts["streams"]) == (200, 1)
            assert set(parts) == {"store", "broker", "streams", "streams_listening"}


async def test_the_password_of_a_stream_is_never_shown_logged_or_stored_in_clear(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with live(tmp_path) as server:
        token = await server.token("admin")
        responses = [await server.ask("POST", "/api/streams", token, json=STREAM)]
        responses += [await server.ask("GET", path, token) for path in ("/api/streams", "/api/streams/one")]
        responses += [await server.ask("PATCH", "/api/streams/one", token, json={"max_handlers": 3})]
        responses += [await server.ask("GET", "/schema/asyncapi.json", token)]

        async def trouble() -> bool | None:
            response = await server.ask("GET", "/api/streams/one", token)
            responses.append(response)
            return response[1]["trouble"] not in {None, "This process does not listen."} or None

        await until(trouble)
        assert [status for status, _ in responses[:5]] == [201, 200, 200, 200, 200]
        assert "127.0.0.1:9" in str(responses)
        assert "p4ssword" not in str(responses)
    output = capsys.readouterr()
    assert "p4ssword" not in output.out + output.err
    assert is_in_clear("127.0.0.1:9", tmp_path / "data")
    assert not is_in_clear("p4ssword", tmp_path / "data")


async def test_streams_are_for_admins(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        assert (await server.ask("POST", "/api/streams", admin, json=STREAM))[0] == 201
        for role in ("user", "reviewer"):
            token = await server.token(role)
            for method, path, body in (
                ("GET", "/api/streams", None),
                ("POST", "/api/streams", STREAM | {"name": "two"}),
                ("GET", "/api/streams/one", None),
                ("PATCH", "/api/streams/one", {"max_handlers": 1}),
                ("DELETE", "/api/streams/one", None),
                ("GET", "/schema/asyncapi.json", None),
            ):
                assert (await server.ask(method, path, token, json=body))[0] == 403, (role, method, path)
                assert (await server.ask(method, path, json=body))[0] == 401
        assert len((await server.ask("GET", "/api/streams", admin))[1]["data"]) == 1


@pytest.mark.parametrize(
    "flaw",
    [
        {"name": "a b"},
        {"name": ""},
        {"url": "http://h/"},
        {"url": "amqp:"},
        {"url": "amqp://[::"},
        {"requests": ""},
        {"requests": "out"},
        {"responses": "a b"},
        {"max_handlers": 0},
        {"max_handlers": 1001},
        {"backoff_max_seconds": 0},
        {"as": "nobody@example.com"},
        {"colour": "blue"},
        {"requests": 5},
    ],
)
async def test_an_invalid_stream_is_refused_with_the_reason(tmp_path: Path, flaw: dict[str, Any]) -> None:
    async with live(tmp_path) as server:
        status, response = await server.ask("POST", "/api/streams", await server.token("admin"), json=STREAM | flaw)
        assert (status, response["code"]) == (400, "bad_request")
        assert "p4ssword" not in str(response)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("amqp://ann:p4ss/word@h:5672/", None),
        ("amqp://ann:12/34@h/", None),
        ("redis://:p4ss?word@h", None),
        ("redis://:p4ss#word@h", None),
        ("amqp://ann:p4ss%2Fword@h/v", "h"),
        ("kafka://ann:p4ss@h-1.example:9092,h_2", "h-1.example:9092,h_2"),
        ("nats://[::1]:4222,127.0.0.1:4222", "[::1]:4222,127.0.0.1:4222"),
        ("nats://h:port", None),
    ],
)
def test_no_part_of_a_password_is_taken_for_a_host(url: str, seen: str | None) -> None:
    scheme, host = public_address(url)
    stream = Stream(name="one", scheme=scheme, host=host, sealed=b"", requests="in", responses="out")
    assert (host if stream_fault(stream) is None else None) == seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "a b"},
            "`name` must be 1 to 64 letters, digits and _.- characters, and begin with a letter or digit.",
        ),
        ({"host": ""}, "`url` must name a host, or host:port; write / ? # @ in a password as %2F %3F %23 %40."),
        ({"requests": ""}, "`requests` must be a topic of 1 to 255 bytes, printable and without blanks."),
        ({"responses": "in"}, "`requests` and `responses` must be different topics."),
        ({"max_handlers": 0}, "`max_handlers` must be 1 to 1000 (got 0)."),
        ({"backoff_max_seconds": 0}, "`backoff_max_seconds` must be more than 0 and at most 3600 (got 0)."),
    ],
)
def test_the_message_about_a_wrong_stream_names_the_parameter(change: dict[str, Any], message: str) -> None:
    values = {"name": "one", "scheme": "amqp", "host": "h", "sealed": b"", "requests": "in", "responses": "out"}
    assert stream_fault(Stream(**values | change)) == message


async def test_a_stream_in_the_settings_cannot_be_changed_or_added_again_at_run_time(tmp_path: Path) -> None:
    async with live(tmp_path, streams=[STREAM]) as server:
        token = await server.token("admin")
        assert (await server.ask("GET", "/api/streams/one", token))[1]["declared"] == "settings"
        status, problem = await server.ask("POST", "/api/streams", token, json=STREAM)
        assert (status, problem["code"]) == (409, "name_taken")
        assert (await server.ask("PATCH", "/api/streams/one", token, json={"max_handlers": 1}))[0] == 409
        assert (await server.ask("DELETE", "/api/streams/one", token))[0] == 409
        assert (await server.ask("DELETE", "/api/streams/two", token))[0] == 404
        assert (await server.ask("PATCH", "/api/streams/two", token, json={}))[0] == 404


async def test_the_topics_are_described_in_valid_asyncapi_3(tmp_path: Path) -> None:
    others = [{"name": "two.b", "url": "rediss://127.0.0.1:9/"}, {"name": "two_b", "url": "nats://127.0.0.1:9"}]
    async with live(tmp_path, streams=[STREAM, *(STREAM | each for each in others)]) as server:
        status, document = await server.ask("GET", "/schema/asyncapi.json", await server.token("admin"))
        assert (status, document["asyncapi"]) == (200, "3.0.0")
        # FastStream requires a `pathname`, which is optional in AsyncAPI 3.0.0
        servers = {name: server | {"pathname": ""} for name, server in document["servers"].items()}
        ApplicationSchema.model_validate(document | {"servers": servers})
        assert document["servers"]["two_dot_b"] == {"host": "127.0.0.1:9", "protocol": "redis"}
        assert document["servers"]["two__b"]["protocol"] == "nats"
        assert {channel["address"] for channel in document["channels"].values()} == {"in", "out"}
        # and every reference can be resolved
        references = set(find_references(document))
        assert references
        for reference in references:
            node: Any = document
            for step in reference.removeprefix("#/").split("/"):
                node = node[step]


def find_references(node: Any) -> list[str]:
    """Return the value of every `$ref` in a document."""
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [reference for value in node.values() for reference in find_references(value)]
    return [reference for value in node for reference in find_references(value)] if isinstance(node, list) else []


async def test_the_example_message_in_the_docs_gives_the_example_reply(tmp_path: Path, wire: RabbitClient) -> None:
    page = (Path(__file__).parents[2] / "docs" / "streams.md").read_text()
    message, reply = (page.split(f"<!-- {part} -->\n```json\n")[1].split("```")[0] for part in ("in", "out"))
    async with live(tmp_path, streams=[declaration(wire)]) as server:
        await server.model("my-model")
        await wire.send(message.encode())
        answer, expected = (await wire.get()).body, json.loads(reply)
        assert answer.keys() == expected.keys()
        assert (answer["status_code"], answer["metadata"]) == (expected["status_code"], expected["metadata"])
        assert answer["body"]["choices"][0].keys() >= expected["body"]["choices"][0].keys()


def test_the_settings_in_the_docs_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "streams.md").read_text()
    (tmp_path / "signoff.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    [stream] = load().declared_streams(str.encode)
    assert (stream.name, stream.transport, stream.host) == ("batch", "rabbitmq", "127.0.0.1:5672")
    assert (stream.user, stream.max_handlers, stream.backoff_max_seconds) == ("batch@example.com", 16, 30)


@pytest.mark.parametrize("flaw", ['url = "ftp://h"', 'colour = "blue"', "max_handlers = 0"])
def test_an_invalid_stream_in_the_settings_is_an_error_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flaw: str
) -> None:
    stream = {name: value for name, value in STREAM.items() if not flaw.startswith(name)}
    lines = [f'{name} = "{value}"' for name, value in stream.items()]
    (tmp_path / "signoff.toml").write_text("\n".join(["[[streams]]", *lines, flaw]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadSettings) as raised:
        load()
    assert "streams" in str(raised.value)
    assert "p4ssword" not in str(raised.value)


def test_two_streams_of_one_name_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNOFF_STREAMS", json.dumps([STREAM, STREAM]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadSettings, match="'one' must not be used by two streams"):
        load()


async def test_a_server_without_streams_never_loads_faststream(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = "import sys, signoff.asgi; sys.exit('faststream' in sys.modules or 'aiokafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=tmp_path).returncode == 0


async def test_a_message_makes_the_same_job_as_the_native_door(tmp_path: Path, wire: RabbitClient) -> None:
    """Check that the job of a message equals that of the native door, except for its door and ids."""
    async with live(tmp_path, streams=[declaration(wire)]) as server:
        token = await server.token("admin")
        body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        message = {"path": "/v1/chat/completions", "metadata": {"a": 1}, "body": body}
        await wire.send(json.dumps(message).encode())
        await wire.get()
        request = {"target": "echo", "metadata": {"a": 1}, "body": body}
        _, job = await server.ask("POST", "/api/jobs", token, json=request)
        native = await server.job_when(token, job["job_id"], lambda job: job["status"] == "success")
        [streamed] = [
            job for job in (await server.ask("GET", "/api/jobs", token))[1]["data"] if job["job_id"] != job_id(native)
        ]
        same = {"status", "payload", "response", "model", "error", "metadata", "round"}
        assert {name: streamed[name] for name in same} == {name: native[name] for name in same}


def job_id(job: dict[str, Any]) -> str:
    return job["job_id"]
