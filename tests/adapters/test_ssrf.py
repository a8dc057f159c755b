"""The SSRF guard of models, which connects to the address that it has checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.resolver import FakeResolver
from fakes.upstream import fake_upstream
from signoff.core.allow_list import MODEL_ADDRESSES
from signoff.core.model import Model, Timeouts
from signoff.engines.http_request import UpstreamRequest
from signoff.engines.upstream import UpstreamClient
from signoff.engines.url import ADDRESS_NOT_ALLOWED
from signoff.errors import ModelFailed, ModelUnreachable
from signoff.infra.ssrf import AddressBlocked, CheckedResolver, probe
from support.live_server import live
from support.processes import free_port
from support.sinks import body_of

pytestmark = pytest.mark.anyio


async def post(url: str, resolver: FakeResolver) -> bytes:
    upstream = UpstreamClient(now=lambda: 0, resolver=resolver)
    await upstream.start()
    try:
        request = UpstreamRequest("POST", url, b"{}", {})
        timeouts = Timeouts(connect_seconds=2)
        return await body_of(lambda sink: upstream.ask(request, sink, timeouts=timeouts, stream=False))
    finally:
        await upstream.close()


async def test_a_model_at_a_private_address_can_be_reached_by_name() -> None:
    async with fake_upstream() as fake:
        url = fake.at("mirror").replace("127.0.0.1", "gpu.internal")
        assert await post(url, FakeResolver(["127.0.0.1"])) == b"{}"
        assert fake.requests[0].headers["host"].startswith("gpu.internal:")


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "fe80::1", "64:ff9b::a9fe:a9fe"]
)
async def test_a_name_that_resolves_to_a_metadata_address_is_refused(address: str) -> None:
    async with fake_upstream() as fake:
        url = fake.at("mirror").replace("127.0.0.1", "model.example")
        with pytest.raises(ModelFailed, match="in a range that is closed to models") as raised:
            await post(url, FakeResolver([address]))
        assert not raised.value.retryable
        assert fake.requests == []


async def test_of_several_addresses_only_the_allowed_ones_are_tried() -> None:
    async with fake_upstream() as fake:
        url = fake.at("mirror").replace("127.0.0.1", "model.example")
        assert await post(url, FakeResolver(["169.254.169.254", "127.0.0.1", "fe80::1"])) == b"{}"


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "[::ffff:169.254.169.254]", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376"),
        *("[fe80::1%25eth0]", "169.254.169.254.", "metadata.google.internal"),
    ],
)
async def test_a_literal_address_in_the_url_is_checked_too(host: str) -> None:
    with pytest.raises(ModelFailed) as raised:
        await post(f"http://{host}/latest", FakeResolver(["127.0.0.1"]))
    assert not isinstance(raised.value, ModelUnreachable)


async def test_the_error_of_the_resolver_has_its_reason() -> None:
    with pytest.raises(AddressBlocked, match="a model needs another one"):
        await CheckedResolver(FakeResolver(["169.254.169.254"]), MODEL_ADDRESSES).resolve("m.example")


async def test_the_health_check_of_a_model_is_guarded_too(tmp_path: Path) -> None:
    with pytest.raises(AddressBlocked):
        await probe("http://model.example/", 80, MODEL_ADDRESSES, FakeResolver(["169.254.169.254"]))
    async with fake_upstream() as fake:
        port = int(fake.at("mirror").split(":")[2].split("/")[0])
        await probe("http://model.example/", port, MODEL_ADDRESSES, FakeResolver(["169.254.169.254", "127.0.0.1"]))
        # an address that does not answer is followed by the next one
        await probe("http://model.example/", port, MODEL_ADDRESSES, FakeResolver(["::1", "127.0.0.2", "127.0.0.1"]))
        with pytest.raises(ConnectionRefusedError):
            await probe("http://model.example/", free_port(), MODEL_ADDRESSES, FakeResolver(["127.0.0.2", "127.0.0.1"]))
    async with live(tmp_path) as server:
        # given a model that was saved before its address was blocked
        await server.services.store.catalog.put_model(Model(name="m", kind="http", url="http://169.254.169.254"))
        _, model = await server.ask("GET", "/api/models/m?health=true", await server.token("admin"))
        detail = "169.254.169.254 is a link-local, multicast or metadata address; a model needs another one."
        assert model["health"] == {"ok": False, "detail": detail}
        status, payload = await server.ask("POST", "/post/predict?id=m", await server.token(), json={})
        assert (status, payload) == (502, {"content": ADDRESS_NOT_ALLOWED})
