"""Several processes of one program behind two servers: every caller gets their own answer from one of them."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from fakes.programs import JSON_LINES_MODEL
from support.processes import first_token, free_port, migrated_environment, served, signoff

CALLERS = 500


def test_five_hundred_callers_of_two_servers_share_two_processes_and_a_killed_one_comes_back(tmp_path: Path) -> None:
    environment, ports = migrated_environment(tmp_path / "data"), (free_port(), free_port())
    with served(environment, tmp_path, ports[0]), served(environment, tmp_path, ports[1]):
        command = shlex.join([sys.executable, "-S", str(JSON_LINES_MODEL)])
        signoff(environment, "model", "add", "mine", "--kind", "subprocess", "--command", command, "--replicas", "2")
        asyncio.run(_assert_shared_work_and_recovery(ports, first_token(tmp_path)))


async def _assert_shared_work_and_recovery(ports: tuple[int, int], token: str) -> None:
    """Call both servers, kill one process of the program, and assert that it is replaced."""
    headers, timeout = {"authorization": f"Bearer {token}"}, aiohttp.ClientTimeout(total=120)
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connections) as http:

        async def ask(number: int) -> tuple[int, Any]:
            url = f"http://127.0.0.1:{ports[number % 2]}/post/predict?id=mine"
            async with http.post(url, json={"number": number, "seconds": number % 10 / 50}) as response:
                return response.status, json.loads(await response.text())

        # when many callers call both servers at once, then each gets their own answer, and two processes share the work
        responses = await asyncio.gather(*[ask(number) for number in range(CALLERS)])
        assert {status for status, _ in responses} == {200}
        assert [payload["asked"]["number"] for _, payload in responses] == list(range(CALLERS))
        shares = Counter(payload["pid"] for _, payload in responses)
        assert len(shares) == 2
        assert min(shares.values()) > CALLERS / 4
        # when one process is killed, later callers see no error, and there are two processes again
        killed = min(shares)
        os.kill(killed, signal.SIGKILL)
        again = await asyncio.gather(*[ask(number) for number in range(100)])
        assert {status for status, _ in again} <= {200, 502}, "who was asked at that instant may be told of the crash"
        again = await asyncio.gather(*[ask(number) for number in range(100)])
        assert {status for status, _ in again} == {200}
        assert len({payload["pid"] for _, payload in again} - {killed}) == 2
        async with http.get(f"http://127.0.0.1:{ports[0]}/api/models/mine?health=true") as response:
            health = (await response.json())["health"]
        assert [endpoint["state"] for endpoint in health["endpoints"]] == ["up", "up"]
