"""A program behind two server processes: every caller gets their own answer, and a crash is told to all of them."""

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
from support.processes import clean_environment, first_token, free_port, served

MANY = 1000


def test_a_thousand_callers_of_two_servers_get_their_own_answers_and_a_crash_is_a_502(tmp_path: Path) -> None:
    environment, ports = clean_environment(tmp_path / "data"), (free_port(), free_port())
    with served(environment, tmp_path, ports[0]), served(environment, tmp_path, ports[1]):
        asyncio.run(_asked(ports, first_token(tmp_path)))


async def _asked(ports: tuple[int, int], token: str) -> None:
    headers, patience = {"authorization": f"Bearer {token}"}, aiohttp.ClientTimeout(total=120)
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=patience, connector=connections) as http:

        async def ask(number: int, **body: Any) -> tuple[int, Any]:
            url = f"http://127.0.0.1:{ports[number % 2]}/post/predict?id=mine"
            async with http.post(url, json={"number": number} | body) as response:
                return response.status, json.loads(await response.text())

        # given a program that was added at one of them
        command = shlex.join([sys.executable, "-S", str(JSON_LINES_MODEL)])
        words = {"id": "mine", "type": "subprocessmodel", "dest": command}
        async with http.post(f"http://127.0.0.1:{ports[0]}/post/addmodel", params=words) as response:
            assert response.status == 200
        # when many ask both at once, then each has their own answer, from one process
        answers = await _at_once([ask(number, seconds=number % 10 / 50) for number in range(MANY)])
        assert {status for status, _ in answers} == {200}
        assert [told["asked"]["number"] for _, told in answers] == list(range(MANY))
        [pid] = {told["pid"] for _, told in answers}
        # when it is killed while they wait, then each is told, and the next ones are answered by another
        waiting = [asyncio.ensure_future(ask(number, seconds=60)) for number in range(20)]
        for number in range(20):
            await ask(number)  # those before it have been asked by now
        os.kill(pid, signal.SIGKILL)
        for status, told in await _at_once(waiting):
            assert status == 502
            assert "ended with status 137 before it answered" in told["content"]
        again = await _at_once([ask(number) for number in range(2)])
        assert [status for status, _ in again] == [200, 200]
        assert {told["pid"] for _, told in again} != {pid}


async def _at_once(asking: list[Any]) -> list[tuple[int, Any]]:
    async def one(asked: Any) -> tuple[int, Any]:
        return await asked

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(asked)) for asked in asking]
    return [task.result() for task in tasks]
