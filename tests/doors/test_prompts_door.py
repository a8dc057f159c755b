"""Prompts, pipelines and functions over HTTP: versions, labels, sharing, and calls of prompts as models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from support.live_server import Live, chat, client, live, until, words
from support.pipeline_cases import PIPELINES

pytestmark = pytest.mark.anyio


async def create(server: Live, token: str, kind: str, **fields: Any) -> dict[str, Any]:
    status, response = await server.ask("POST", f"/api/{kind}s", token, json=fields)
    assert status == 201, response
    return response


async def sync_functions(server: Live, admin: str, source: str = "") -> dict[str, Any]:
    """Write `source` to the file of functions, and return the response of a sync."""
    folder = server.services.caches.functions._folders[0]
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "custom_test.py").write_text(source)
    status, response = await server.ask("POST", "/api/functions/sync", admin)
    assert status == 200
    return response


async def save_cases(server: Live, token: str) -> None:
    """Save the prompts and functions that the cases in PIPELINES call."""
    admin = await server.token("admin")
    response = await sync_functions(server, admin, "\n".join(PIPELINES["functions"].values()))
    assert {"builtin_concat", "builtin_identity", "builtin_hi", "add", "map"} <= set(response["created"])
    for name, body in PIPELINES["prompts"].items():
        await create(server, token, "prompt", name=name, body=body, model="echo")


# Saving


async def test_a_prompt_is_saved_in_versions_that_can_be_compared(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        # given a prompt with two versions
        first = await create(
            server, token, "prompt", name="greet", body="Hello {name},\nbye", model="echo", message="new"
        )
        assert (first["version"], first["labels"], first["args"], first["message"]) == (
            1,
            ["production"],
            ["name"],
            "new",
        )
        assert first["created_at"].endswith("Z")
        body = {"body": "Hi {name},\nbye {who}", "label": None}
        status, second = await server.ask("PUT", "/api/prompts/greet", token, json=body)
        assert (status, second["version"], second["labels"], second["model"]) == (200, 2, [], "echo")
        # then each version can be read by name and by id
        for key in ("greet", str(first["id"])):
            assert (await server.ask("GET", f"/api/prompts/{key}", token))[1] == first
            assert (await server.ask("GET", f"/api/prompts/{key}?version=2", token))[1] == second
        # and their difference can be read
        _, response = await server.ask("GET", "/api/prompts/greet/difference?from=production&to=2", token)
        assert response["difference"].splitlines() == [
            "--- greet, version 1",
            "+++ greet, version 2",
            "@@ -1,2 +1,2 @@",
            "-Hello {name},",
            "-bye",
            "+Hi {name},",
            "+bye {who}",
        ]
        # when the label moves to the second version, that one is the default
        status, moved = await server.ask("PUT", "/api/prompts/greet/labels/production", token, json={"version": 2})
        assert (status, moved["version"], moved["labels"]) == (200, 2, ["production"])
        assert (await server.ask("GET", "/api/prompts/greet", token))[1]["version"] == 2
        _, listed = await server.ask("GET", "/api/prompts/greet/versions?limit=1", token)
        assert ([each["version"] for each in listed["data"]], listed["next"]) == ([2], 2)
        _, listed = await server.ask("GET", "/api/prompts/greet/versions?before=2", token)
        assert ([each["version"] for each in listed["data"]], listed["next"]) == ([1], None)
        # and when the prompt is deleted, it is not found
        assert (await server.ask("DELETE", "/api/prompts/greet", token))[0] == 204
        status, response = await server.ask("GET", "/api/prompts/greet", token)
        assert (status, response["code"]) == (404, "composed_not_found")


async def test_versions_of_very_many_lines_are_not_compared(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await create(server, token, "prompt", name="long", body="line\n" * 2000)
        await server.ask("PUT", "/api/prompts/long", token, json={"body": "line\n" * 2001})

        for query, status in (("from=1&to=1", 200), ("from=1&to=2", 400)):
            assert (await server.ask("GET", f"/api/prompts/long/difference?{query}", token))[0] == status


async def test_a_label_names_a_version_until_it_is_deleted(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await create(server, token, "prompt", name="p", body="1")
        await server.ask("PUT", "/api/prompts/p", token, json={"body": "2", "label": "staging"})
        assert (await server.ask("GET", "/api/prompts/p", token))[1]["body"] == "1"
        assert (await server.ask("GET", "/api/prompts/p?version=staging", token))[1]["body"] == "2"
        assert (await server.ask("DELETE", "/api/prompts/p/labels/staging", token))[0] == 204
        assert (await server.ask("GET", "/api/prompts/p?version=staging", token))[0] == 404
        assert (await server.ask("DELETE", "/api/prompts/p/labels/staging", token))[0] == 404
        assert (await server.ask("DELETE", "/api/prompts/p/labels/production", token))[0] == 400
        assert (await server.ask("PUT", "/api/prompts/p/labels/x", token, json={"version": 9}))[0] == 404
        assert (await server.ask("PUT", "/api/prompts/p/labels/9x", token, json={"version": 1}))[0] == 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "p"},
        {"body": "b"},
        {"name": "p", "body": ""},
        {"name": "p", "body": {"size": 1_048_577}},
        {"name": "p", "body": "a\0b"},
        {"name": "p", "body": "b", "message": "m" * 1001},
        {"name": "p", "body": "b", "label": "9"},
        {"name": "p", "body": "b", "colour": "red"},
        *({"name": name, "body": "b"} for name in ("", "1p", "_p", "a b", "a-b", "a.b", "true", "null", "x" * 101)),
    ],
)
async def test_an_invalid_prompt_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        if isinstance(wrong.get("body"), dict):
            wrong = wrong | {"body": "x" * wrong["body"]["size"]}
        body = io.BytesIO(json.dumps(wrong).encode())
        status, response = await server.ask("POST", "/api/prompts", await server.token(), data=body)
        assert (status, response["status"], bool(response["detail"])) == (400, 400, True)


async def test_a_prompt_for_an_unknown_model_is_refused_as_a_call_of_it_is(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        prompt = {"name": "p", "body": "b", "model": "unknown"}
        status, problem = await server.ask("POST", "/api/prompts", await server.token(), json=prompt)
        assert (status, problem["code"]) == (404, "model_not_found")


async def test_a_name_is_unique_across_kinds_and_users(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, bob, admin = (
            await server.token(),
            await server.token("user", "bob@example.com"),
            await server.token("admin"),
        )
        await sync_functions(server, admin, "def twice(x): return 2 * x")
        await create(server, ann, "prompt", name="greet", body="Hello")
        for kind, name in [("prompt", "greet"), ("pipeline", "greet"), ("prompt", "add"), ("prompt", "twice")]:
            for token in (ann, bob):
                body = {"name": name, "body": "twice(1)"}
                status, response = await server.ask("POST", f"/api/{kind}s", token, json=body)
                assert (status, response["code"]) == (409, "name_taken")
        status, response = await server.ask("POST", "/api/prompts", ann, json={"name": "echo", "body": "x"})
        assert (status, response["code"]) == (409, "name_taken")
        # which comes before every other fault
        for kind, body in [("prompt", {"model": "unknown"}), ("prompt", {"body": ""}), ("pipeline", {"body": "("})]:
            for name in ("greet", "twice", "echo"):
                draft = {"name": name, "body": "x"} | body
                status, response = await server.ask("POST", f"/api/{kind}s", bob, json=draft)
                assert (status, response["code"]) == (409, "name_taken")
        # a name of a model, of a shared and of a private prompt get the same answer
        await create(server, bob, "prompt", name="secret", body="x")
        await create(server, bob, "prompt", name="open", body="x", shared=True)
        details = set[str]()
        for name in ("echo", "open", "secret", "twice"):
            _, response = await server.ask("POST", "/api/prompts", ann, json={"name": name, "body": "x"})
            details.add(json.dumps(response | {"instance": ""}).replace(repr(name), "NAME"))
        assert len(details) == 1, details
        response = await sync_functions(server, admin, "def greet(x): return x")
        assert (response["created"], response["deleted"], response["taken"]) == ([], ["twice"], ["greet"])


# Pipelines


async def test_saving_an_invalid_pipeline_reports_the_position_of_the_fault(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await save_cases(server, token)
        for number, text in enumerate(PIPELINES["refused_at_save_or_run"] + PIPELINES["does_not_parse"]):
            body = {"name": f"p{number}", "body": text}
            status, response = await server.ask("POST", "/api/pipelines", token, json=body)
            assert status == 400, text
            if text:
                assert response["code"] == "bad_pipeline"
                assert (response["line"], response["column"]) == (1, response["position"] + 1)
        body = {"name": "p", "body": "builtin_concat(\n  prompt_a(x),\n  nobody(y))"}
        status, response = await server.ask("POST", "/api/pipelines", token, json=body)
        assert (response["position"], response["line"], response["column"]) == (33, 3, 3)
        assert response["detail"] == "There is no prompt, function or pipeline `nobody` (line 3, column 3)."


async def test_every_pipeline_that_runs_can_be_saved_and_lists_its_arguments(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await save_cases(server, token)
        for number, case in enumerate(PIPELINES["runs"]):
            saved = await create(server, token, "pipeline", name=f"run{number}", body=case["pipeline"])
            names = list(case["args"])
            assert saved["args"] == names
            for query in (f"pipeline_name=run{number}", f"pipeline_id={saved['id']}"):
                status, response = await server.ask("GET", f"/api/pipeline/args?{query}", token)
                assert (status, response) == (200, {"success": True, "response": names})
        for query, status in [("pipeline_name=nobody", 404), ("pipeline_name=prompt_a", 404), ("", 400)]:
            answer = await server.ask("GET", f"/api/pipeline/args?{query}", token)
            assert (answer[0], bool(answer[1]["detail"])) == (status, True)


async def test_the_pipeline_of_the_document_can_be_saved_if_its_functions_exist(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        source = "def foo(bar): return bar\ndef bar(x): return x\ndef fred(a, b, c): return a + b + c"
        await sync_functions(server, await server.token("admin"), source)
        saved = await create(server, await server.token(), "pipeline", name="mine", body="foo(bar(fred(1,2,3)))")
        assert saved["args"] == []


async def test_a_pipeline_cannot_call_itself_through_another(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await create(server, token, "prompt", name="p", body="{x}")
        await create(server, token, "pipeline", name="inner", body="p(a)")
        await create(server, token, "pipeline", name="outer", body="p(inner(a))")
        for body in ("outer(a)", "inner(a)", "p(inner(a))"):
            status, response = await server.ask("PUT", "/api/pipelines/inner", token, json={"body": body})
            assert (status, response["code"]) == (400, "bad_pipeline")
            assert "calls itself" in response["detail"]
        assert (await server.ask("GET", "/api/pipelines/inner", token))[1]["version"] == 1


async def test_a_prompt_that_a_pipeline_calls_is_deleted_only_by_force(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await create(server, token, "prompt", name="p", body="{x}")
        await create(server, token, "pipeline", name="one", body="p(a)")
        await create(server, token, "pipeline", name="two", body="p(one(a))")
        _, response = await server.ask("GET", "/api/prompts/p/users", token)
        assert ([each["name"] for each in response["data"]], response["next"]) == (["one", "two"], None)
        _, response = await server.ask("GET", "/api/prompts/p/users?limit=1&after=one", token)
        assert ([each["name"] for each in response["data"]], response["next"]) == (["two"], "two")
        _, response = await server.ask("GET", "/api/pipelines/one/users", token)
        assert [each["name"] for each in response["data"]] == ["two"]
        status, response = await server.ask("DELETE", "/api/prompts/p", token)
        assert status == 409
        assert "called by one and two" in response["detail"]
        assert (await server.ask("DELETE", "/api/prompts/p?force=true", token))[0] == 204


# Two tenants


async def test_users_cannot_see_change_or_call_prompts_of_other_users(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, admin = await server.token(), await server.token("admin")
        strangers = [await server.token("user", "bob@example.com"), await server.token("reviewer")]
        await create(server, ann, "prompt", name="secret", body="The word is {x}", model="echo")
        await create(server, ann, "pipeline", name="line", body="secret(a)")
        routes: list[tuple[str, str, Any]] = [
            (method, f"/api/{resource}{rest}", body)
            for resource in ("prompts/secret", "pipelines/line")
            for method, rest, body in [
                ("GET", "", None),
                ("GET", "/versions", None),
                ("GET", "/difference?from=1", None),
                ("GET", "/users", None),
                ("PUT", "", {"body": "secret(a)"}),
                ("PATCH", "", {"shared": True}),
                ("DELETE", "", None),
                ("PUT", "/labels/x", {"version": 1}),
                ("DELETE", "/labels/x", None),
            ]
        ]
        routes.append(("GET", "/api/pipeline/args?pipeline_name=line", None))
        for token in strangers:
            for method, path, body in routes:
                status, response = await server.ask(method, path, token, json=body)
                assert (status, response["code"]) == (404, "composed_not_found"), path
            assert (await server.ask("GET", "/api/prompts", token))[1]["data"] == []
            assert (await server.ask("GET", "/v1/models/secret", token))[0] == 404
            status, response = await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "secret"))
            assert (status, response["error"]["code"]) == (404, "model_not_found")
            unknown = (await server.ask("POST", "/v1/chat/completions", token, json=chat("hi", "nobody")))[1]
            assert response["error"]["message"] == unknown["error"]["message"].replace("nobody", "secret")
            pipeline = {"name": "mine", "body": "secret(a)"}
            status, response = await server.ask("POST", "/api/pipelines", token, json=pipeline)
            assert (status, response["code"]) == (400, "bad_pipeline")
        for method, path, _ in routes:
            assert (await server.ask(method, path))[0] == 401
        # an admin sees all
        assert [each["name"] for each in (await server.ask("GET", "/api/prompts", admin))[1]["data"]] == ["secret"]
        assert (await server.ask("GET", "/api/prompts/secret", admin))[0] == 200
        assert (await server.ask("GET", "/api/prompts/secret", ann))[1]["version"] == 1


async def test_a_shared_prompt_is_used_by_all_and_changed_only_by_its_owner(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, bob = await server.token(), await server.token("user", "bob@example.com")
        await create(server, ann, "prompt", name="open", body="The word is {x}", model="echo", shared=True)
        assert (await server.ask("GET", "/api/prompts/open", bob))[1]["shared"] is True
        for method, path, body in [
            ("PUT", "/api/prompts/open", {"body": "mine"}),
            ("PATCH", "/api/prompts/open", {"shared": False}),
            ("DELETE", "/api/prompts/open", None),
            ("PUT", "/api/prompts/open/labels/production", {"version": 1}),
        ]:
            assert (await server.ask(method, path, bob, json=body))[0] == 403
        assert words((await server.ask("POST", "/v1/chat/completions", bob, json=chat("go", "open")))[1]) == (
            "The word is go"
        )
        assert (await server.ask("PATCH", "/api/prompts/open", ann, json={"shared": False}))[1]["shared"] is False
        assert (await server.ask("POST", "/v1/chat/completions", bob, json=chat("go", "open")))[0] == 404


async def test_a_shared_pipeline_calls_only_shared_prompts(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, bob = await server.token(), await server.token("user", "bob@example.com")
        await create(server, ann, "prompt", name="own", body="{x}")
        await create(server, ann, "pipeline", name="line", body="own(a)")
        body = {"name": "open", "body": "own(a)", "shared": True}
        status, response = await server.ask("POST", "/api/pipelines", ann, json=body)
        assert (status, response["code"]) == (400, "bad_pipeline")
        assert (await server.ask("PATCH", "/api/pipelines/line", ann, json={"shared": True}))[0] == 400
        await server.ask("PATCH", "/api/prompts/own", ann, json={"shared": True})
        assert (await server.ask("PATCH", "/api/pipelines/line", ann, json={"shared": True}))[0] == 200
        assert (await server.ask("GET", "/api/pipelines/line", bob))[0] == 200


async def test_lists_come_in_pages(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        for number in range(5):
            await create(server, token, "prompt", name=f"p{number}", body="x")
        names, after = list[str](), ""
        while after is not None:
            _, page = await server.ask("GET", f"/api/prompts?limit=2&after={after}", token)
            names += [each["name"] for each in page["data"]]
            after = page["next"]
        assert names == [f"p{number}" for number in range(5)]
        assert (await server.ask("GET", "/api/prompts?limit=1001", token))[0] == 400


# Functions


async def test_a_sync_reports_new_and_deleted_functions_and_reloads_edited_ones(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin, user = await server.token("admin"), await server.token()
        assert (await server.ask("POST", "/api/functions/sync", user))[0] == 403
        assert (await server.ask("GET", "/api/functions", user))[1] == {"data": [], "next": None}
        response = await sync_functions(
            server, admin, 'def hi(name: str, mark="!"):\n    """Greets."""\n    return name'
        )
        assert (response["success"], response["deleted"], response["broken"]) == (True, [], [])
        assert response["created"] == sorted([*BUILTINS, "hi"])
        _, listed = await server.ask("GET", "/api/functions", user)
        [hi] = [each for each in listed["data"] if each["name"] == "hi"]
        assert (hi["signature"], hi["doc"], hi["module"]) == ('hi(name, mark="!")', "Greets.", "custom_test")
        _, page = await server.ask("GET", "/api/functions?limit=2", user)
        assert ([each["name"] for each in page["data"]], page["next"]) == (["add", "append"], "append")
        response = await sync_functions(server, admin, "def bye(): return 1")
        assert (response["created"], response["deleted"]) == (["bye"], ["hi"])
        assert (await sync_functions(server, admin, "def bye(): return 2"))["created"] == []


BUILTINS = (
    *("add", "subtract", "multiply", "divide", "length", "uppercase", "lowercase", "concat", "append", "remove"),
    *("sort", "to_str", "now", "identity", "map", "reduce", "get_prompts"),
)


async def test_a_broken_file_is_reported_with_its_line_and_keeps_its_old_functions(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        admin = await server.token("admin")
        await sync_functions(server, admin, "def mine(): return 1")
        response = await sync_functions(server, admin, "def fine(): return 1\n\ndef broken(:\n")
        assert (response["success"], response["created"], response["deleted"]) == (True, [], [])
        [broken] = response["broken"]
        assert (broken["file"], broken["line"]) == ("custom_test.py", 3)
        assert "SyntaxError" in broken["message"]
        response = await sync_functions(server, admin, "x = 1\nimport nobody_has_this\n")
        assert [(broken["file"], broken["line"]) for broken in response["broken"]] == [("custom_test.py", 2)]
        response = await sync_functions(server, admin, "import sys\nsys.exit()")
        assert "SystemExit" in response["broken"][0]["message"]
        response = await sync_functions(
            server, admin, "def fine(): return 1\ndef many(*all): return 1\ndef add(): return 1"
        )
        assert (response["created"], response["deleted"]) == (["fine"], ["mine"])
        assert [(broken["line"], broken["message"].split()[0]) for broken in response["broken"]] == [
            (2, "many"),
            (3, "add"),
        ]


# Prompts as models


async def test_a_prompt_is_called_as_a_model(tmp_path: Path) -> None:
    async with live(tmp_path) as server, client(server) as openai:
        token = await server.token()
        await create(server, token, "prompt", name="one", body="Say {what}!", model="echo")
        await create(server, token, "prompt", name="two", body="{a} and {b}", model="echo")
        await create(server, token, "prompt", name="none", body="Just this.", model="echo")
        cases: list[tuple[str, str, str]] = [
            ("one", "hello", "Say hello!"),
            ("one", '{"what": "hello"}', "Say hello!"),
            ("one", '{"other": "hello"}', 'Say {"other": "hello"}!'),
            ("one", "{what} {{x}} \"quoted\" 'é'", "Say {what} {{x}} \"quoted\" 'é'!"),
            ("one", '{"what": {"deep": [1, "é"]}}', 'Say {"deep": [1, "é"]}!'),
            ("two", '{"a": "{b}", "b": 2.0}', "{b} and 2.0"),
            ("none", "whatever", "Just this."),
        ]
        for name, text, expected in cases:
            messages: Any = [{"role": "system", "content": "x"}, {"role": "user", "content": text}]
            answer = await openai.chat.completions.create(model=name, messages=messages)
            assert answer.choices[0].message.content == expected
            streamed = [
                chunk.choices[0].delta.content or ""
                async for chunk in await openai.chat.completions.create(model=name, messages=messages, stream=True)
                if chunk.choices
            ]
            assert "".join(streamed) == expected
        for text in ("hello", "{}", '{"a": 1}', '{"a": 1, "b": 2, "c": 3}', "[1, 2]", '"a"'):
            status, response = await server.ask("POST", "/v1/chat/completions", token, json=chat(text, "two"))
            assert (status, response["error"]["code"]) == (400, "bad_request")
            assert "a and b" in response["error"]["message"]
        listed = [model.id async for model in await openai.models.list()]
        assert {"one", "two", "none", "echo"} <= set(listed)
        assert (await openai.models.retrieve("one")).id == "one"


async def test_a_job_names_the_version_of_its_prompt(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await create(server, token, "prompt", name="p", body="one {x}", model="echo")
        await server.ask("PUT", "/api/prompts/p", token, json={"body": "two {x}", "label": "staging"})
        for target, expected, version in [("p", "one go", 1), ("p@staging", "two go", 2), ("p@2", "two go", 2)]:
            body = chat("go", target, temperature=0.25, seed=7)
            async with server.http.post(
                server.url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {token}"}
            ) as response:
                assert words(await response.json()) == expected
                job_id = response.headers["x-signoff-job"]

            async def stored_job(job_id: str = job_id) -> dict[str, Any] | None:
                status, job = await server.ask("GET", f"/api/jobs/{job_id}", token)
                return job if status == 200 else None

            job = await until(stored_job)
            assert (job["prompt"], job["prompt_version"], job["model"]) == ("p", version, "echo")
            assert job["payload"] == chat(expected, "echo", temperature=0.25, seed=7)
        assert (await server.ask("POST", "/v1/chat/completions", token, json=chat("go", "p@3")))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "find"),
    [
        ("POST", "/v1/completions", {"model": "p", "prompt": "go"}, lambda response: response["choices"][0]["text"]),
        (
            "POST",
            "/v1/responses",
            {"model": "p", "input": "go"},
            lambda response: response["output"][0]["content"][0]["text"],
        ),
        (
            "POST",
            "/v1/responses",
            {"model": "p", "input": [{"role": "user", "content": [{"type": "input_text", "text": "go"}]}]},
            lambda response: response["output"][0]["content"][0]["text"],
        ),
        ("POST", "/post/predict?id=p", {"x": "go"}, words),
        ("POST", "/post/predict?id=p", "go", words),
        ("POST", "/generate", {"meta": {"model": "p"}, "content": "go"}, lambda response: response["content"]),
        (
            "POST",
            "/chat_completion",
            {"meta": {"model": "p"}, "messages": [{"role": "user", "content": "go"}]},
            lambda response: response["content"],
        ),
    ],
)
async def test_every_door_that_waits_accepts_a_prompt_as_a_model(
    method: str, path: str, body: Any, find: Any, tmp_path: Path
) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await create(server, token, "prompt", name="p", body="Say {x}!", model="echo")
        status, response = await server.ask(method, path, token, json=body)
        assert status == 200, response
        assert find(response) == "Say go!"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/enqueue", {"model": "p", "input": "go"}),
        ("/enqueue", {"model": "p", "x": "go"}),
        ("/api/jobs", {"target": "p", "body": {"x": "go"}}),
        ("/api/jobs", {"target": "p", "body": "go"}),
        ("/api/jobs", {"target": "p", "body": {"messages": [{"role": "user", "content": '{"x": "go"}'}]}}),
    ],
)
async def test_every_door_to_the_lane_later_accepts_a_prompt_as_a_model(path: str, body: Any, tmp_path: Path) -> None:
    async with live(tmp_path, enqueue_review="never") as server:
        token = await server.token()
        await create(server, token, "prompt", name="p", body="Say {x}!", model="echo")
        _, response = await server.ask("POST", path, token, json=body)
        job = await server.job_when(token, response["job_id"], lambda job: job["status"] == "success")
        assert words(job["response"]) == "Say go!"
        assert (job["prompt"], job["prompt_version"]) == ("p", 1)


async def test_a_prompt_cannot_be_called_without_a_text(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await create(server, token, "prompt", name="p", body="Say {x}!", model="echo")
        status, response = await server.ask("POST", "/v1/embeddings", token, json={"model": "p", "input": "go"})
        assert (status, "is a prompt" in response["error"]["message"]) == (400, True)
        picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        body = {"model": "p", "messages": [{"role": "user", "content": picture}]}
        assert (await server.ask("POST", "/v1/chat/completions", token, json=body))[0] == 400


async def test_a_prompt_precedes_a_wildcard_model_but_not_a_model_of_its_name(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        await server.model("g*", kind="echo")
        await create(server, token, "prompt", name="greet", body="Hello {x}", model="echo")
        assert words((await server.ask("POST", "/v1/chat/completions", token, json=chat("a", "greet")))[1]) == "Hello a"
        assert words((await server.ask("POST", "/v1/chat/completions", token, json=chat("a", "gone")))[1]) == "a"
        await server.model("greet")
        assert words((await server.ask("POST", "/v1/chat/completions", token, json=chat("a", "greet")))[1]) == "a"
        listed = (await server.ask("GET", "/v1/models", token))[1]["data"]
        assert [each["id"] for each in listed].count("greet") == 1


async def test_a_shared_prompt_does_not_replace_a_wildcard_model_of_others(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        ann, bob, admin = [await server.token(), await server.token(email="bob@x.org"), await server.token("admin")]

        async def answers(name: str, *tokens: str) -> list[str]:
            replies = [await server.ask("POST", "/v1/chat/completions", each, json=chat("a", name)) for each in tokens]
            return [words(reply) for _, reply in replies]

        # given shared prompts that are older than the model
        await create(server, bob, "prompt", name="gpt4", body="Bob {x}", model="echo", shared=True)
        await create(server, admin, "prompt", name="gpt5", body="Admin {x}", model="echo", shared=True)
        assert await answers("gpt4", ann, bob, admin) == ["Bob a"] * 3
        # when the model is registered, that of a user serves this user alone, and that of an admin serves all
        await server.model("gpt*")
        assert await answers("gpt4", ann, bob, admin) == ["a", "Bob a", "a"]
        assert await answers("gpt5", ann, bob, admin) == ["Admin a"] * 3
        listed = {each["id"] for each in (await server.ask("GET", "/v1/models", ann))[1]["data"]}
        assert listed & {"gpt4", "gpt5"} == {"gpt5"}
        # and a user can share no further one, in whatever way
        draft = {"name": "gpt6", "body": "Bob {x}", "model": "echo"}
        assert (await server.ask("POST", "/api/prompts", bob, json=draft | {"shared": True}))[0] == 409
        assert (await server.ask("POST", "/api/prompts", bob, json=draft))[0] == 201
        refused = [
            await server.ask("PATCH", "/api/prompts/gpt6", bob, json={"shared": True}),
            await server.ask("PUT", "/api/prompts/gpt6", bob, json={"body": "New", "shared": True}),
            await server.ask("PATCH", "/api/prompts/gpt6", admin, json={"shared": True}),
            await server.ask("POST", "/api/pipelines", bob, json={"name": "gpt7", "body": "gpt4(1)", "shared": True}),
        ]
        assert [(status, reply["code"]) for status, reply in refused] == [(409, "name_taken")] * 4
        assert (await server.ask("POST", "/api/prompts", admin, json=draft | {"name": "gpt8", "shared": True}))[
            0
        ] == 201


async def test_the_same_key_joins_the_same_call_of_a_prompt_despite_a_new_version(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, key = await server.token(), {"idempotency-key": "k"}
        await create(server, token, "prompt", name="p", body="one {x}", model="echo")
        body = chat("go", "p")
        assert words((await server.ask("POST", "/v1/chat/completions", token, json=body, headers=key))[1]) == "one go"
        await server.ask("PUT", "/api/prompts/p", token, json={"body": "two {x}"})
        assert words((await server.ask("POST", "/v1/chat/completions", token, json=body, headers=key))[1]) == "one go"
        assert words((await server.ask("POST", "/v1/chat/completions", token, json=body))[1]) == "two go"
        other = chat("stop", "p")
        assert (await server.ask("POST", "/v1/chat/completions", token, json=other, headers=key))[0] == 422


async def test_a_held_job_of_a_prompt_is_sent_back_with_its_rendered_text(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, reviewer = await server.token(), await server.token("reviewer")
        await server.model("careful", review="always")
        await create(server, token, "prompt", name="p", body="one {x}", model="careful")
        _, response = await server.ask("POST", "/api/jobs", token, json={"target": "p", "body": "go"})
        held = await server.job_when(reviewer, response["job_id"], lambda job: job["status"] == "human")
        assert words(held["response"]) == "one go"
        await server.ask("PUT", "/api/prompts/p", token, json={"body": "two {x}"})
        payload = json.loads(json.dumps(held["payload"]).replace("one go", "one more"))
        redo = {"id": response["job_id"], "status": "bot", "payload": payload}
        assert (await server.ask("POST", "/reviewJob", reviewer, json=redo))[0] == 200
        again = await server.job_when(
            reviewer, response["job_id"], lambda job: job["status"] == "human" and job["round"] > held["round"]
        )
        assert (words(again["response"]), again["prompt_version"]) == ("one more", 1)


async def test_a_prompt_that_its_values_make_too_large_is_refused(tmp_path: Path) -> None:
    async with live(tmp_path, max_body_bytes=200_000) as server:
        token = await server.token()
        await create(server, token, "prompt", name="bomb", body="{x}" * 20_000, model="echo")
        status, refusal = await server.ask("POST", "/v1/chat/completions", token, json=chat("A" * 20_000, "bomb"))
        assert (status, refusal["error"]["code"]) == (400, "bad_request")
        assert "it would have 400000000" in refusal["error"]["message"]
        status, _ = await server.ask("POST", "/v1/chat/completions", token, json=chat("A" * 10, "bomb"))
        assert status == 200


async def test_lists_of_large_prompts_come_in_pages_and_models_are_listed_without_texts(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, names = await server.token(), [f"p{number:02}" for number in range(12)]
        for name in names:
            await create(server, token, "prompt", name=name, body="x" * 1_000_000, model="echo")
        listed, cursor = list[str](), ""
        while cursor is not None:
            _, page = await server.ask("GET", f"/api/prompts?limit=1000&after={cursor}", token)
            assert 1 <= len(page["data"]) <= 9
            listed, cursor = [*listed, *(item["name"] for item in page["data"])], page["next"]
        assert listed == names
        models = [each["id"] for each in (await server.ask("GET", "/v1/models", token))[1]["data"]]
        assert [name for name in models if name in names] == names
