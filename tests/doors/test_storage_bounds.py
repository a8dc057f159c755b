"""Bounds on what one user stores by files and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from signoff.work.batches import manage
from support.batches import a_line, as_file, new_user, uploaded
from support.live_server import live

pytestmark = pytest.mark.anyio
MESSAGE = {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": "x" * 300}]}


async def test_the_files_of_a_user_are_bounded_together(tmp_path: Path) -> None:
    async with live(tmp_path, max_stored_bytes=1000) as server, new_user(server) as ai, new_user(server) as other:
        first = await uploaded(ai, b"x" * 600)
        # when one more would be too large
        with pytest.raises(openai.APIStatusError) as refused:
            await uploaded(ai, b"x" * 401)
        assert (refused.value.status_code, refused.value.code) == (413, "storage_full")
        requests = {"requests": [{"custom_id": str(number), "params": MESSAGE} for number in range(2)]}
        status, _ = await server.ask("POST", "/v1/messages/batches", ai.api_key, json=requests)
        assert status == 413
        # then nothing of it is left, and others are free to upload
        assert [file.id async for file in ai.files.list()] == [first]
        blobs = [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]
        assert [path.name for path in blobs] == [first]
        await uploaded(other, b"x" * 1000)
        # and so is the user, with a smaller one, or once a file is deleted
        await uploaded(ai, b"x" * 400)
        await ai.files.delete(first)
        await uploaded(ai, b"x" * 600)


async def test_the_batches_of_a_user_that_have_not_ended_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manage, "MAX_OPEN_BATCHES", 2)
    async with live(tmp_path) as server, new_user(server) as ai, new_user(server) as other:
        await server.model("careful", review="always")
        file_id = await uploaded(ai, as_file(a_line("a", model="careful")))
        for number in range(3):
            request = {"requests": [{"custom_id": "a", "params": MESSAGE | {"model": "careful"}}]}
            status, error = await server.ask("POST", "/v1/messages/batches", ai.api_key, json=request)
            assert status == (200 if number < 2 else 429), error
        with pytest.raises(openai.RateLimitError) as refused:
            await ai.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
        assert refused.value.code == "backlog_full"
        assert (await server.ask("POST", "/v1/messages/batches", other.api_key, json=request))[0] == 200


async def test_a_repeated_batch_is_returned_though_the_user_has_reached_all_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manage, "MAX_OPEN_BATCHES", 2)
    async with live(tmp_path, max_stored_bytes=1000) as server, new_user(server) as ai:
        await server.model("careful", review="always")
        file_id = await uploaded(ai, as_file(a_line("a", model="careful")))
        plain: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        plain["extra_headers"] = {"Idempotency-Key": "of a file"}
        messages = {"requests": [{"custom_id": "a", "params": MESSAGE | {"model": "careful"}}]}
        headers = {"Idempotency-Key": "of messages"}

        async def create() -> tuple[str, Any]:
            return (
                (await ai.batches.create(input_file_id=file_id, **plain)).id,
                await server.ask("POST", "/v1/messages/batches", ai.api_key, json=messages, headers=headers),
            )

        first = await create()
        user_id = (await server.services.store.batches.get(first[0])).user_id  # type: ignore[union-attr]
        stored_bytes = await server.services.store.files.stored_bytes(user_id)
        await uploaded(ai, b"x" * (1000 - stored_bytes))
        file, (status, batch) = await create()
        assert (file, status, batch["id"]) == (first[0], 200, first[1][1]["id"])
        # while the key of another request, and another key, are refused
        with pytest.raises(openai.UnprocessableEntityError):
            await ai.batches.create(input_file_id="file-other", **plain)
        messages["requests"][0]["custom_id"] = "b"
        for key, expected in (("of messages", 422), ("new", 429)):
            headers["Idempotency-Key"] = key
            status, _ = await server.ask("POST", "/v1/messages/batches", ai.api_key, json=messages, headers=headers)
            assert status == expected
