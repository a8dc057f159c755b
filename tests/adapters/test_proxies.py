"""Forward proxies and certificates on the way to models and webhooks, against real local servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from fakes.behaviours import ANSWER
from fakes.forward_proxy import ForwardProxy
from fakes.http_server import LIMIT_SECONDS, RecordedRequest, Reply, whole
from fakes.upstream import fake_upstream
from signoff.core.allow_list import MODEL_ADDRESSES, AllowList
from signoff.core.delivery import OutgoingMessage
from signoff.core.model import Timeouts
from signoff.deliverers.http import HttpDeliverer
from signoff.engines import http_pool
from signoff.engines.http_request import UpstreamRequest
from signoff.engines.upstream import UpstreamClient
from signoff.errors import AddressRefused, ModelFailed, ModelGarbled, ModelUnreachable
from signoff.infra import ssrf, tls
from signoff.infra.proxies import Proxies
from support.certificates import make_certificate, tls_server
from support.sinks import Events

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def client(proxies: Proxies | None = None) -> AsyncIterator[UpstreamClient]:
    upstream = UpstreamClient(now=lambda: 0.0, proxies=proxies or Proxies())
    await upstream.start()
    yield upstream
    await upstream.close()


async def ask(upstream: UpstreamClient, url: str) -> bytes | None:
    request = UpstreamRequest("POST", url, b"{}", {})
    async with asyncio.timeout(LIMIT_SECONDS):
        return await upstream.ask(request, Events(), timeouts=Timeouts(), stream=False)


async def answer(request: RecordedRequest) -> Reply:
    return whole(ANSWER)


# The choice of a proxy


@pytest.mark.parametrize(
    ("url", "excluded", "is_direct"),
    [
        ("http://llm.example/v1", "", False),
        ("http://llm.example/v1", "other.example", False),
        ("http://llm.example/v1", "llm.example", True),
        ("http://llm.example/v1", " Example ", True),
        ("http://llm.example/v1", ".example", True),
        ("http://llm.example/v1", "*.example", True),
        ("http://llm.example/v1", "a,*", True),
        ("http://notexample/v1", "example", False),
        ("http://llm.example:8000/v1", "llm.example:8000", True),
        ("http://llm.example:8001/v1", "llm.example:8000", False),
        ("http://10.1.2.3/v1", "10.0.0.0/8", True),
        ("http://11.1.2.3/v1", "10.0.0.0/8", False),
        ("http://[fd00::1]/v1", "fd00::/8", True),
        ("http://localhost:1/v1", "", True),
        ("http://127.0.0.2/v1", "", True),
        ("http://[::1]/v1", "", True),
        ("https://llm.example/v1", "", True),
    ],
)
def test_the_scheme_and_the_exclusions_tell_if_there_is_a_proxy(url: str, excluded: str, is_direct: bool) -> None:
    proxy = Proxies({"http": "proxy.example:3128", "no": excluded}).find(URL(url))

    assert proxy == (None if is_direct else URL("http://proxy.example:3128"))


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_the_environment_is_read_in_both_cases_of_letters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("no_proxy", "x")
    assert not Proxies.from_environment()
    monkeypatch.setenv(name, "http://proxy:1")

    proxies = Proxies.from_environment()

    assert proxies
    assert proxies.find(URL("https://h/v1")) == URL("http://proxy:1")


# Models


async def test_a_model_is_called_through_its_proxy_and_the_proxy_resolves_its_name() -> None:
    async with fake_upstream(answer) as fake, ForwardProxy(fake.port) as proxy:
        address = proxy.url.replace("http://", "http://user:pass@")
        async with client(Proxies({"http": address, "no": "direct.example"})) as upstream:
            assert await ask(upstream, "http://llm.internal.example/v1/chat/completions?a=%2F") == ANSWER
            first, *headers = proxy.heads[0]
            assert first == "POST http://llm.internal.example/v1/chat/completions?a=%2F HTTP/1.1"
            assert "proxy-authorization: basic dxnlcjpwyxnz" in map(str.lower, headers)
            assert await ask(upstream, f"http://127.0.0.1:{fake.port}/v1") == ANSWER
            with pytest.raises(ModelUnreachable):
                await ask(upstream, "http://direct.example.invalid.direct.example/v1")
            with pytest.raises(ModelFailed, match="closed to models"):
                await ask(upstream, "http://169.254.169.254/v1")
            assert len(proxy.heads) == 1


async def test_a_tunnel_goes_to_a_model_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificate(tmp_path / "c.pem", host="api.llm.example")
    trust(monkeypatch, tmp_path / "c.pem")
    async with tls_server(tmp_path / "c.pem", ANSWER) as port, ForwardProxy(port) as proxy:
        async with client(Proxies({"https": proxy.url})) as upstream:
            assert await ask(upstream, "https://api.llm.example/v1") == ANSWER
        assert proxy.heads[0][0] == "CONNECT api.llm.example:443 HTTP/1.1"


async def test_a_proxy_that_refuses_or_is_down_is_named() -> None:
    async with ForwardProxy(1, status=407) as proxy, client(Proxies({"https": proxy.url})) as upstream:
        with pytest.raises(ModelUnreachable, match=r"The proxy refused to connect to the model \(status 407\)"):
            await ask(upstream, "https://api.llm.example/v1")
    async with client(Proxies({"https": "http://127.0.0.1:1"})) as upstream:
        with pytest.raises(ModelUnreachable, match="The model's proxy cannot be reached: Connection refused"):
            await ask(upstream, "https://api.llm.example/v1")
    async with client(Proxies({"https": "socks5://127.0.0.1:1"})) as upstream:
        with pytest.raises(ModelUnreachable):
            await ask(upstream, "https://api.llm.example/v1")


@pytest.mark.parametrize(
    ("host", "is_expired", "is_trusted", "words"),
    [
        ("127.0.0.1", False, False, "certificate verify failed: self-signed certificate; add its authority"),
        ("other.example", False, True, "certificate verify failed: it is for another host name"),
        ("10.9.8.7", False, True, "certificate verify failed: it is for another host name"),
        ("127.0.0.1", True, True, "certificate verify failed: it has expired"),
    ],
)
async def test_the_fault_of_a_certificate_is_named_to_callers_and_in_the_health(
    host: str, is_expired: bool, is_trusted: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificate(tmp_path / "c.pem", host=host, is_expired=is_expired)
    if is_trusted:
        trust(monkeypatch, tmp_path / "c.pem")
    async with tls_server(tmp_path / "c.pem") as port, client() as upstream:
        with pytest.raises(ModelUnreachable, match=f"The model cannot be reached: {words}") as raised:
            await ask(upstream, f"https://127.0.0.1:{port}/v1")
        assert not raised.value.retryable
        with pytest.raises(OSError, match="certificate verify failed") as failed:
            await ssrf.probe(f"https://127.0.0.1:{port}/v1", port, MODEL_ADDRESSES)
        assert (tls.tls_fault(failed.value) or "").startswith(words)


async def test_a_trusted_certificate_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificate(tmp_path / "c.pem")
    trust(monkeypatch, tmp_path / "c.pem")
    async with tls_server(tmp_path / "c.pem", ANSWER) as port, client() as upstream:
        assert await ask(upstream, f"https://127.0.0.1:{port}/v1") == ANSWER
        await ssrf.probe(f"https://127.0.0.1:{port}/v1", port, MODEL_ADDRESSES)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": is_fast}) for is_fast in (True, False)])
async def test_a_call_that_is_cancelled_at_any_step_leaves_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificate(tmp_path / "c.pem")
    trust(monkeypatch, tmp_path / "c.pem")
    async with tls_server(tmp_path / "c.pem", ANSWER) as port, client() as upstream:
        url = f"https://127.0.0.1:{port}/v1"
        files = count_of_files()
        for steps in range(40):
            call = asyncio.ensure_future(ask(upstream, url))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
        async with asyncio.timeout(LIMIT_SECONDS):
            while count_of_files() > files:
                await asyncio.sleep(0)
        assert await ask(upstream, url) == ANSWER


def count_of_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_the_wrong_scheme_is_named(greeting: bytes, tmp_path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as plain, client() as upstream:
        with pytest.raises(ModelUnreachable, match="does not speak TLS at this port; begin its URL with http://"):
            await ask(upstream, f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}/v1")
    make_certificate(tmp_path / "c.pem")
    async with tls_server(tmp_path / "c.pem") as port, client() as upstream:
        with pytest.raises((ModelGarbled, ModelUnreachable), match="begin with https://"):
            await ask(upstream, f"http://127.0.0.1:{port}/v1")


def trust(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    """Trust a certificate, as SSL_CERT_FILE makes OpenSSL do in a new process."""
    context = tls.default_context()
    fresh = type(context)(context.protocol)
    fresh.verify_mode, fresh.check_hostname = context.verify_mode, context.check_hostname
    fresh.load_verify_locations(certificate)
    monkeypatch.setattr(ssrf, "default_context", lambda: fresh)
    monkeypatch.setattr(http_pool, "default_context", lambda: fresh)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", fresh)


# Webhooks


def hook(url: str) -> OutgoingMessage:
    return OutgoingMessage(address=url, body=b"{}", headers={})


async def test_a_webhook_goes_through_a_proxy_only_if_its_host_is_allowed_by_name() -> None:
    async with fake_upstream(answer) as fake, ForwardProxy(fake.port) as proxy:
        deliverer = HttpDeliverer(AllowList(["hooks.example"]), proxies=Proxies({"http": proxy.url}))
        await deliverer.start()
        assert await deliverer.send(hook("http://hooks.example/h")) == 200
        for url in ("http://other.invalid/h", proxy.url, "http://127.0.0.1/h", "http://10.0.0.1/h"):
            with pytest.raises(AddressRefused):
                await deliverer.send(hook(url))
        assert [head[0] for head in proxy.heads] == ["POST http://hooks.example/h HTTP/1.1"]
        await deliverer.close()
