"""Several processes of one program behind two server processes: each caller gets an answer of their own, from any."""

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
from support.processes import clean_environment, first_token, free_port, served, signoff

MANY = 1000


def test_a_thousand_callers_of_two_servers_share_two_processes_and_a_killed_one_comes_back(tmp_path: Path) -> None:
    environment, ports = clean_environment(tmp_path / "data"), (free_port(), free_port())
    with served(environment, tmp_path, ports[0]), served(environment, tmp_path, ports[1]):
        command = shlex.join([sys.executable, "-S", str(JSON_LINES_MODEL)])
        signoff(environment, "model", "add", "mine", "--kind", "subprocess", "--command", command, "--replicas", "2")
        asyncio.run(_asked(ports, first_token(tmp_path)))


async def _asked(ports: tuple[int, int], token: str) -> None:
    headers, patience = {"authorization": f"Bearer {token}"}, aiohttp.ClientTimeout(total=120)
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=patience, connector=connections) as http:

        async def ask(number: int) -> tuple[int, Any]:
            url = f"http://127.0.0.1:{ports[number % 2]}/post/predict?id=mine"
            async with http.post(url, json={"number": number, "seconds": number % 10 / 50}) as response:
                return response.status, json.loads(await response.text())

        # when many ask both at once, then each has their own answer, and two processes have shared the work
        told = await asyncio.gather(*[ask(number) for number in range(MANY)])
        assert {status for status, _ in told} == {200}
        assert [said["asked"]["number"] for _, said in told] == list(range(MANY))
        shares = Counter(said["pid"] for _, said in told)
        assert len(shares) == 2
        assert min(shares.values()) > MANY / 4
        # when one of them is killed, nobody who comes later sees an error, and there are two again
        killed = min(shares)
        os.kill(killed, signal.SIGKILL)
        again = await asyncio.gather(*[ask(number) for number in range(100)])
        assert {status for status, _ in again} <= {200, 502}, "who was asked at that instant may be told of the crash"
        again = await asyncio.gather(*[ask(number) for number in range(100)])
        assert {status for status, _ in again} == {200}
        assert len({said["pid"] for _, said in again} - {killed}) == 2
        async with http.get(f"http://127.0.0.1:{ports[0]}/api/models/mine?health=true") as response:
            health = (await response.json())["health"]
        assert [each["state"] for each in health["endpoints"]] == ["up", "up"]
