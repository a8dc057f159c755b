"""An edited request is admitted again: the model that it names answers, under the stricter of both policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.live_server import Live, chat, live, words

pytestmark = pytest.mark.anyio


async def held(server: Live, token: str, path: str, body: Any, **more: Any) -> str:
    """Send a request whose answer is held, and return the id of its job."""
    await server.ask("POST", path, token, json=body, headers={"prefer": "wait=0"}, **more)
    job_id = (await server.ask("GET", "/api/jobs", token))[1]["data"][0]["job_id"]
    await server.job_when(token, job_id, lambda job: job["status"] == "human")
    return job_id


async def redo(server: Live, token: str, job_id: str, payload: Any) -> tuple[int, Any]:
    """Ask again with an edited payload."""
    return await server.ask("POST", "/reviewJob", token, json={"id": job_id, "status": "bot", "payload": payload})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/enqueue", chat("first", "small")),
        ("/enqueue", {"input": "first", "model": "small"}),
        ("/api/jobs", {"target": "small", "body": chat("first", "small")}),
        ("/v1/chat/completions", chat("first", "small")),
        ("/api/openai/v1/chat/completions", chat("first", "small")),
        ("/generate", {"job_id": "1", "content": "first", "meta": {"model": "small"}}),
    ],
)
async def test_the_model_that_an_edited_request_names_answers_it(path: str, body: Any, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("small", review="always")
        await server.model("large", review="never", attempts=2)
        token = await server.token("admin")
        job_id = await held(server, token, path, body)
        # an unknown model, and one that is no model, change nothing
        await server.ask("POST", "/api/prompts", token, json={"name": "ask", "body": "Say {x}."})
        for name, status in (("nobody", 404), ("ask", 400)):
            assert (await redo(server, token, job_id, chat("second", name)))[0] == status
        job = await server.job_when(token, job_id, lambda job: job["status"] == "human")
        assert (job["round"], job["model"], words(job["response"])) == (1, "small", "first")

        assert (await redo(server, token, job_id, chat("second", "large")))[0] == 200
        # the answer is held again, because the first model has a stricter policy
        job = await server.job_when(token, job_id, lambda job: (job["status"], job["round"]) == ("human", 2))
        assert (job["model"], words(job["response"])) == ("large", "second")
        stored = await server.services.store.jobs.get(job_id)
        assert stored is not None
        assert (stored.target, stored.max_attempts, stored.response is None) == ("large", 2, False)


async def test_a_draft_and_a_verdict_that_can_be_undone_name_the_model_too(tmp_path: Path) -> None:
    async with live(tmp_path, release_after_seconds=0.2) as server:
        await server.model("small", review="always")
        await server.model("large")
        token = await server.token("admin")
        job_id = await held(server, token, "/enqueue", chat("first", "small"))
        draft = {"id": job_id, "status": "human", "payload": chat("second", "large")}
        assert (await server.ask("POST", "/reviewJob", token, json=draft))[0] == 200
        assert (await server.ask("POST", "/reviewJob", token, json={"id": job_id, "status": "bot"}))[0] == 200
        job = await server.job_when(token, job_id, lambda job: (job["status"], job["round"]) == ("human", 2))
        assert (job["model"], words(job["response"])) == ("large", "second")


async def test_an_edited_request_has_the_rights_of_its_owner(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("small", review="always")
        reviewer, user = await server.token("admin"), await server.token()
        await server.ask("POST", "/api/prompts", reviewer, json={"name": "mine", "body": "Say {x}."})
        job_id = await held(server, user, "/v1/responses", {"model": "small", "input": "first"})
        # an object of another user does not exist for the owner, whatever the reviewer may see
        edited = {"model": "small", "input": "second", "previous_response_id": "resp_of_another"}
        owned = await server.services.store.jobs.get(job_id)
        assert owned is not None
        for payload in ({"model": "mine", "input": "x"}, {**edited, "Model": "small"}):
            status, _ = await redo(server, reviewer, job_id, payload)
            assert status in {400, 404}
        assert await server.services.store.jobs.get(job_id) == owned


async def test_a_member_of_a_models_own_selects_no_model(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        await server.model("small", review="always")
        token = await server.token("admin")
        job_id = await held(server, token, "/post/predict?id=small", {"model": "v1", "input": "first"})
        assert (await redo(server, token, job_id, {"model": "v2", "input": "second"}))[0] == 200
        job = await server.job_when(token, job_id, lambda job: (job["status"], job["round"]) == ("human", 2))
        assert (job["model"], job["payload"]["model"]) == ("small", "v2")
