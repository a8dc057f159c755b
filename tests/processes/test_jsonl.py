"""A JSON-lines program behind two servers: every caller gets their own answer, and a crash fails all who wait."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from fakes.programs import JSON_LINES_MODEL
from support.processes import first_token, free_port, migrated_environment, served

CALLERS = 500


def test_five_hundred_callers_of_two_servers_get_their_own_answers_and_a_crash_is_a_502(tmp_path: Path) -> None:
    environment, ports = migrated_environment(tmp_path / "data"), (free_port(), free_port())
    with served(environment, tmp_path, ports[0]), served(environment, tmp_path, ports[1]):
        asyncio.run(_assert_own_answers_and_recovery(ports, first_token(tmp_path)))


async def _assert_own_answers_and_recovery(ports: tuple[int, int], token: str) -> None:
    """Call both servers, kill the program, and assert that it is replaced."""
    headers, timeout = {"authorization": f"Bearer {token}"}, aiohttp.ClientTimeout(total=120)
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connections) as http:

        async def ask(number: int, **body: Any) -> tuple[int, Any]:
            url = f"http://127.0.0.1:{ports[number % 2]}/post/predict?id=mine"
            async with http.post(url, json={"number": number} | body) as response:
                return response.status, json.loads(await response.text())

        # given a program that was added at one server
        command = shlex.join([sys.executable, "-S", str(JSON_LINES_MODEL)])
        params = {"id": "mine", "type": "subprocessmodel", "dest": command}
        async with http.post(f"http://127.0.0.1:{ports[0]}/post/addmodel", params=params) as response:
            assert response.status == 200
        # when many callers call both servers at once, then each gets their own answer, from one process
        answers = await _gather([ask(number, seconds=number % 10 / 50) for number in range(CALLERS)])
        assert {status for status, _ in answers} == {200}
        assert [payload["asked"]["number"] for _, payload in answers] == list(range(CALLERS))
        [pid] = {payload["pid"] for _, payload in answers}
        # when it is killed while callers wait, then each gets an error, and a new process answers the next calls
        tasks = [asyncio.ensure_future(ask(number, seconds=60)) for number in range(20)]
        for number in range(20):
            await ask(number)  # returns after the program has received the requests before it
        os.kill(pid, signal.SIGKILL)
        for status, payload in await _gather(tasks):
            assert status == 502
            assert "ended with status 137 before it answered" in payload["content"]
        again = await _gather([ask(number) for number in range(2)])
        assert [status for status, _ in again] == [200, 200]
        assert {payload["pid"] for _, payload in again} != {pid}


async def _gather(calls: list[Any]) -> list[tuple[int, Any]]:
    """Run the calls at once, and return their results in order."""

    async def wait_for(call: Any) -> tuple[int, Any]:
        return await call

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait_for(call)) for call in calls]
    return [task.result() for task in tasks]
