"""Gateways that are measured beside each other: how each is started, and what each does not do in the run.

`make bench-peers` installs them below `.bench/`. Retries, health checks, circuit breakers, access logs and telemetry
are off, connections are kept alive, and each runs as one process on one core.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from process_tree import ProcessTree
from result import ROOT, commit

PEERS = ROOT / ".bench"
CHAT = "/v1/chat/completions"
KEY = "sk-bench-0123456789"


@dataclass(frozen=True, kw_only=True)
class Running:
    """Gateway that runs, and what a request to it looks like."""

    tree: ProcessTree | None
    """Its processes; None: the mock is asked directly."""
    port: int
    path: str = CHAT
    model: str = "bench"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """Gateway that can be measured."""

    name: str
    title: str
    """Name with the language in which it is written."""
    lacks: str
    """Work that it leaves out in the run, of: check a token, count limits, look into a cache, keep a log."""
    start: Callable[[int, Path, int | None], Running]
    """Function of the port of the mock, an empty folder and a core that starts it."""
    version: Callable[[], str | None]
    """Function that returns the version; None if it is not installed."""
    variant: bool = False
    """True for another setting of a gateway, which runs only in the scenarios that name it."""


def ask_directly(upstream: int, folder: Path, core: int | None) -> Running:
    """Ask the mock itself."""
    return Running(tree=None, port=upstream)


def start_nginx(upstream: int, folder: Path, core: int | None) -> Running:
    """Start nginx as a reverse proxy with connections to the mock that stay open."""
    port = free_port()
    (folder / "nginx.conf").write_text(
        f"""
        daemon off; worker_processes 1; pid {folder}/pid; error_log stderr;
        {"user root;" if os.geteuid() == 0 else ""}
        events {{ worker_connections 4096; }}
        http {{
            access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
            client_body_buffer_size 1m; client_max_body_size 20m;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
            uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
            upstream mock {{
                server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000000; keepalive_timeout 1h;
            }}
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location / {{ proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; }}
            }}
        }}
        """
    )
    command = [nginx() or "nginx", "-p", folder, "-c", folder / "nginx.conf"]
    return Running(tree=ProcessTree(command, core=core, folder=folder), port=port)


def start_vllm_router(upstream: int, folder: Path, core: int | None) -> Running:
    """Start vllm-router with one worker."""
    port, more = free_port(), ["--health-check-interval-secs", "3600"]
    return router([PEERS / "vllm-router/bin/vllm-router"], port, upstream, more, folder, core)


def start_sglang_router(upstream: int, folder: Path, core: int | None) -> Running:
    """Start sglang-router with one worker."""
    port, program = free_port(), PEERS / "sglang-router/bin/sglang-router"
    return router([program, "launch"], port, upstream, ["--disable-health-check"], folder, core)


def router(
    command: list[str | Path], port: int, upstream: int, more: list[str], folder: Path, core: int | None
) -> Running:
    """Start a router: the two take the same options."""
    options = ["--host", "127.0.0.1", "--port", port, "--worker-urls", f"http://127.0.0.1:{upstream}"]
    options += ["--policy", "round_robin", "--disable-retries", "--disable-circuit-breaker"]
    options += ["--prometheus-host", "127.0.0.1", "--prometheus-port", free_port(), "--max-concurrent-requests", 4096]
    words = [*command, *(str(option) for option in options), *more, "--log-level", "error"]
    return Running(tree=ProcessTree(words, core=core, folder=folder), port=port)


def start_tensorzero(upstream: int, folder: Path, core: int | None) -> Running:
    """Start the gateway that TensorZero's wheel contains, without observability."""
    (folder / "tensorzero.toml").write_text(
        f"""
        [gateway]
        observability.enabled = false
        disable_pseudonymous_usage_analytics = true
        [models.bench]
        routing = ["mock"]
        [models.bench.providers.mock]
        type = "openai"
        api_base = "http://127.0.0.1:{upstream}/v1/"
        model_name = "bench"
        api_key_location = "none"
        """
    )
    program = (
        "import tensorzero\n"
        "gateway = tensorzero._start_http_gateway(config_file='tensorzero.toml', clickhouse_url=None,\n"
        "    postgres_url=None, valkey_url=None, async_setup=False)\n"
        "print(gateway.base_url, flush=True)\n"
        "import threading\n"
        "threading.Event().wait()\n"
    )
    tree = ProcessTree([PEERS / "tensorzero/bin/python", "-c", program], core=core, folder=folder)
    port = tree.wait_for(rb"http://[^:/]+:(\d+)")
    return Running(
        tree=tree, port=int(port[1]), path="/openai/v1/chat/completions", model="tensorzero::model_name::bench"
    )


def start_litellm(upstream: int, folder: Path, core: int | None) -> Running:
    """Start LiteLLM's proxy without a database and callbacks; it checks the master key."""
    port = free_port()
    mock = {"model": "openai/bench", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "bench", "litellm_params": mock}],
        "litellm_settings": {"num_retries": 0, "telemetry": False, "callbacks": []},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {"master_key": KEY, "disable_spend_logs": True},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    program = PEERS / "litellm/bin/litellm"
    command = [program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    settings = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    tree = ProcessTree([*command, "--telemetry", "False"], core=core, folder=folder, settings=settings)
    return Running(tree=tree, port=port, headers={"authorization": f"Bearer {KEY}"})


def start_portkey(upstream: int, folder: Path, core: int | None) -> Running:
    """Start Portkey's gateway, which takes the address of the provider from the request."""
    port, program = free_port(), PEERS / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    tree = ProcessTree(
        ["node", program, f"--port={port}", "--headless"], core=core, folder=folder, settings={"NODE_ENV": "production"}
    )
    headers = {
        "authorization": f"Bearer {KEY}",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
    }
    return Running(tree=tree, port=port, headers=headers)


def start_signoff(
    root: Path,
    folder: Path,
    core: int | None,
    upstream: int,
    *,
    tool: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    limit: bool = False,
) -> Running:
    """Start the Signoff of a checkout, with a token, the cache and the log.

    Args:
        root: the checkout.
        folder: an empty folder for its data.
        core: the core that it runs on; None leaves the choice to the system.
        upstream: port of the mock.
        tool: program with options that runs the interpreter of Python.
        settings: environment variables of the server.
        limit: True for limits of requests and tokens, which are never reached, for each user.
    """
    program = root / ".venv/bin/signoff"
    command = [*tool, root / ".venv/bin/python", program, "serve", "--port", "0"]
    tree = ProcessTree(command, core=core, folder=folder, settings=settings)
    match = tree.wait_for(rb"http://127\.0\.0\.1:(\d+)\n[\s\S]*Token: (\S+)")
    words = ["model", "add", "bench", "--kind", "openai", "--url", f"http://127.0.0.1:{upstream}/v1"]
    subprocess.run([program, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    if limit:
        words = ["limit", "set", "each", "--requests", "100000000", "--tokens", "100000000000"]
        subprocess.run([program, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return Running(tree=tree, port=int(match[1]), headers={"authorization": f"Bearer {match[2].decode()}"})


def wait_for_answer(running: Running, request: bytes) -> bytes:
    """Ask until the gateway answers with status 200 and the text of the mock, and return the answer."""

    def answer() -> bytes | None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", running.port), timeout=10) as link:
            link.sendall(request)
            text = b""
            while b"xxxx" not in text and (part := link.recv(65536)):
                text += part
                if not text.startswith(b"HTTP/1.1 200"):
                    return None
            return text if b"xxxx" in text else None
        return None

    return running.tree.wait_until(answer) if running.tree else answer() or b""


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def nginx() -> str | None:
    """Return the path of nginx, which Debian keeps beside the paths of users."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def nginx_version() -> str | None:
    """Return the version of nginx."""
    program = nginx()
    if program is None:
        return None
    text = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    return text.strip().rpartition("/")[2]


def python_version(environment: str, package: str) -> Callable[[], str | None]:
    """Return a function that returns the version of a package in an environment below `.bench/`."""

    def version() -> str | None:
        folders = [*(PEERS / environment).glob(f"lib/python*/site-packages/{package.replace('-', '_')}-*.dist-info")]
        return folders[0].name.removesuffix(".dist-info").rpartition("-")[2] if folders else None

    return version


def portkey_version() -> str | None:
    """Return the version of Portkey's gateway and that of Node.js."""
    path = PEERS / "portkey/node_modules/@portkey-ai/gateway/package.json"
    if not path.exists() or not shutil.which("node"):
        return None
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{json.loads(path.read_text())['version']}, Node.js {node.removeprefix('v')}"


NONE_OF_ALL = "token check, limits, cache, log"
GATEWAYS = (
    Gateway(name="direct", title="the mock, without a gateway", lacks="", start=ask_directly, version=lambda: ""),
    Gateway(name="nginx", title="nginx (C)", lacks=NONE_OF_ALL, start=start_nginx, version=nginx_version),
    Gateway(
        name="vllm-router",
        title="vllm-router (Rust)",
        lacks=NONE_OF_ALL,
        start=start_vllm_router,
        version=python_version("vllm-router", "vllm-router"),
    ),
    Gateway(
        name="sglang-router",
        title="sglang-router (Rust)",
        lacks=NONE_OF_ALL,
        start=start_sglang_router,
        version=python_version("sglang-router", "sglang-router"),
    ),
    Gateway(
        name="tensorzero",
        title="TensorZero (Rust)",
        lacks=NONE_OF_ALL,
        start=start_tensorzero,
        version=python_version("tensorzero", "tensorzero"),
    ),
    Gateway(
        name="portkey",
        title="Portkey (Node.js)",
        lacks=NONE_OF_ALL,
        start=start_portkey,
        version=portkey_version,
    ),
    Gateway(
        name="litellm",
        title="LiteLLM (Python)",
        lacks="limits, cache, log",
        start=start_litellm,
        version=python_version("litellm", "litellm"),
    ),
)


def signoff_gateways(root: Path) -> list[Gateway]:
    """Return the Signoff of a checkout, and its variants."""

    def gateway(name: str, title: str, lacks: str, *, limit: bool = False, **settings: str) -> Gateway:
        return Gateway(
            name=name,
            title=title,
            lacks=lacks,
            start=lambda upstream, folder, core: start_signoff(
                root, folder, core, upstream, settings=settings, limit=limit
            ),
            version=lambda: commit(root) if (root / ".venv/bin/signoff").exists() else None,
            variant=name != "signoff",
        )

    return [
        gateway("signoff", "Signoff (Python)", "nothing; it looks for limits, and none is set"),
        gateway(
            "signoff-log-before-answer",
            "Signoff, `log_before_answer`",
            "the same",
            SIGNOFF_LOG_BEFORE_ANSWER="true",
        ),
        gateway("signoff-limits", "Signoff, with limits of requests and tokens for each user", "nothing", limit=True),
    ]
