"""Pictures of every page of the dashboard, with life-like data. Run `make screenshots` to write them.

Those of the documentation go to `docs/images/`; all others, which are not kept, to `.screenshots/`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import sqlalchemy as sa

from signoff.core.price import Price
from signoff.core.reviews.ruling import Ruling
from signoff.core.times import DAY_US
from signoff.stores.latency_schema import latency_days, latency_hours
from signoff.stores.receipts_schema import review_hours
from signoff.stores.schema import calls, jobs, usage_days, usage_hours
from signoff.work.admin.people import create_token, create_user
from signoff.work.admin.usage import add_price
from signoff.work.pipelines.functions import register_missing_builtins
from support.batches import a_line, as_file
from support.browser import DESKTOP, PHONE, Person, browser, person, sign_in
from support.live_server import Live, live, until
from support.service_supervisor import chromium_binary
from support.stores import a_step, execute, leased

ROOT = Path(__file__).parents[1]
KEPT, OTHERS = ROOT / "docs" / "images", ROOT / ".screenshots"
IN_DOCS = {"review", "job", "usage"}
DAYS = 7
MODELS = {"gpt-4o": (2_500_000, 10_000_000), "claude-sonnet": (3_000_000, 15_000_000), "llama-local": None}
USERS = ("storefront", "returns-agent", "newsletter")
QUESTIONS = (
    "When does the warranty of my Fjell 60 dishwasher end? I bought it in March.",
    "The dishwasher I bought three weeks ago leaks from the door. Order 48-20917. I would like my money back.",
    "Can you delete everything you know about me, please?",
    "Is the E14 error covered by the guarantee, or do I have to pay the technician?",
    "I paid twice for order 48-19980. Please send one of the payments back.",
    "Bitte schicken Sie mir die Rechnung vom Mai noch einmal zu.",
    "Which descaler may I use with the Fjell coffee machine?",
    "Your technician did not come on Tuesday, and nobody called.",
)
SYSTEM = (
    "You are the support assistant of Alder Home. Answer in the customer's language, in at most 120 words. Never state "
    "that a refund above 150 € has been made: open a return, and say that a colleague confirms the refund."
)
ARGUMENTS = {"order_id": "48-20917", "reason": "defective", "amount": 489, "pickup": False, "refund_now": True}
PARAMETERS = {
    "type": "object",
    "properties": {
        "order_id": {"type": "string", "description": "Number of the order"},
        "reason": {"type": "string", "enum": ["defective", "late", "wrong item", "not needed", "other"]},
        "amount": {"type": "number", "description": "In euros"},
        "pickup": {"type": "boolean"},
        "refund_now": {"type": "boolean"},
    },
    "required": ["order_id", "reason"],
}
ANSWER = (
    "I am sorry that your dishwasher leaks. Your order 48-20917 is within the 30-day return window, so I have refunded "
    "489.00 € to your card. You should see it within two days. Please bring the dishwasher to one of our stores."
)
EDIT = (
    "I am sorry that your dishwasher leaks. Your order 48-20917 is within the 30-day return window, so I have opened a "
    "return. A colleague confirms the refund of 489.00 € by e-mail today. The carrier collects the dishwasher, free of "
    "charge."
)
REPLY = "Thank you for writing. Your guarantee covers this until March 2028, and a technician calls you this afternoon."
PROMPT = "Summarise the conversation in one sentence for the next shift: {conversation}"
PAGES = (
    *("jobs", "batches", "usage", "policies", "quality", "prompts", "pipelines", "playground"),
    *("functions", "cache", "limits", "queues", "prices", "models", "people", "audit"),
)
POLICY = {
    "target": "gpt-4o",
    "rules": [
        {"if": "answer.tool_calls.size() > 0", "then": "hold", "queue": "refunds"},
        {"if": "signals.logprob_min == null || signals.logprob_min < -4.0", "then": "hold"},
    ],
    "budget": {"answers": 10_000, "share": 0.02, "confidence": 0.95, "audit_rate": 0.1},
}


async def main() -> None:
    """Write all pictures."""
    shutil.rmtree(OTHERS, ignore_errors=True)
    OTHERS.mkdir()
    binary = chromium_binary()
    if binary is None:
        raise SystemExit("No browser was found: install chromium (on Debian: apt install chromium).")
    with tempfile.TemporaryDirectory() as folder:
        async with (
            live(Path(folder), log_before_answer=True, release_after_seconds=0) as server,
            browser(str(binary)) as running,
        ):
            addresses = await fill(server)
            async with person(running, server.url) as reviewer:
                await sign_in(server.services, reviewer, "robin", "admin")
                await edit(reviewer, addresses["review"])
                for name, address in addresses.items():
                    await show(reviewer, name, address)


async def fill(server: Live) -> dict[str, str]:
    """Fill the server with the work of a week; return the addresses of its pages by their names."""
    await register_missing_builtins(server.services)
    for name, price in MODELS.items():
        await server.model(name)
        if price is not None:
            await add_price(server.services, Price(model=name, valid_from=0, input=price[0], output=price[1]))
    tokens = [await token_of(server, name) for name in USERS]
    admin = await server.token("admin", "admin@alder.example")
    job_id = await work_for_a_week(server, tokens, admin)
    await server.ask("PUT", "/api/review-reasons", admin, json={"reasons": REASONS})
    for number, text in enumerate((PROMPT.replace(" in one sentence", ""), PROMPT)):
        prompt = {"name": "shift_summary", "body": text, "model": "claude-sonnet", "message": ("", "Shorter")[number]}
        method, path = ("PUT", "/api/prompts/shift_summary") if number else ("POST", "/api/prompts")
        status, answer = await server.ask(method, path, admin, json=prompt | {"label": "production"})
        assert status < 300, answer
        for _ in range(7 - 3 * number):
            await call(server, admin, "shift_summary", number)
    await server.ask("POST", "/api/pipelines", admin, json={"name": "report", "body": "uppercase(shift_summary(text))"})
    await create_user(server.services, "robin@example.com", "admin")
    queue = {"members": ["robin@example.com"], "ageing_seconds": 3600}
    await server.ask("PUT", "/api/review-queues/refunds", admin, json=queue)
    await server.ask("POST", "/api/keys", admin, json={"name": "Support, OpenAI", "key": "sk-example", "shared": True})
    _, saved = await server.ask("PUT", "/api/policies/support", admin, json=POLICY)
    assert saved.get("version") == 1, saved
    limit = {"requests_per_minute": 60, "cost_per_day": "5"}
    status, _ = await server.ask("PUT", "/api/limits/user:storefront@alder.example", admin, json=limit)
    assert status == 200
    items = [await hold(server, number, question) for number, question in enumerate(QUESTIONS)]
    pages = {name: f"/dashboard/{name}" for name in PAGES} | {"user": "/dashboard/people/users/1"}
    batch_id, faulty_id = await batches(server, tokens[1])
    ones = {
        "job": f"jobs/{job_id}",
        "policy": "policies/support",
        "model": "models/gpt-4o",
        "prompt": "prompts/shift_summary",
        "bulk": "review/bulk",
        "history": "review/history",
        "pipeline": "pipelines/report",
        "batch": f"batches/{batch_id}",
        "batch-faulty": f"batches/{faulty_id}",
    }
    return (
        {"review": f"/dashboard/review/{items[1]}"}
        | {name: f"/dashboard/{path}" for name, path in ones.items()}
        | pages
    )


async def batches(server: Live, token: str) -> tuple[str, str]:
    """Make a batch that is answered, one of a file with faults, and one whose answers are held."""
    lines = [a_line(str(number), question, model="llama-local") for number, question in enumerate(QUESTIONS * 40)]
    faulty: list[dict[str, Any] | str] = [*lines[:20], "{", lines[3], a_line("x", model="gpt-5")]
    reviewed = [a_line(str(number), question, model="gpt-4o") for number, question in enumerate(QUESTIONS)]
    files = {"may.jsonl": as_file(*lines), "june.jsonl": as_file(*faulty), "refunds.jsonl": as_file(*reviewed)}
    made = list[str]()
    for name, content in files.items():
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", content, filename=name)
        _, file = await server.ask("POST", "/v1/files", token, data=form)
        new = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        _, batch = await server.ask("POST", "/v1/batches", token, json=new)
        made.append(batch["id"])

    async def all_came_far() -> bool | None:
        _, page = await server.ask("GET", "/v1/batches", token)
        return {batch["status"] for batch in page["data"]} == {"completed", "failed", "in_progress"} or None

    await until(all_came_far)
    return made[0], made[1]


REASONS = ["Wrong fact", "Against policy", "Wrong tool call", "Personal data", "Tone", "Incomplete"]


async def token_of(server: Live, name: str) -> str:
    user = await create_user(server.services, f"{name}@alder.example", "user")
    return await create_token(server.services, user)


async def work_for_a_week(server: Live, tokens: list[str], admin: str) -> str:
    """Call the models on each of DAYS days, more on some than on others; return the id of a job of the last day."""
    numbers = itertools.count()
    for day in range(DAYS):
        for name, share in zip(MODELS, (6, 4, 2), strict=True):
            for _ in range(share * (3 + (day * 5) % 4)):
                number = next(numbers)
                pause = 0.02 + 0.15 * (number * 7 % 10 / 10) ** 3
                model = f"{name}/status=503" if number % 23 == 0 else f"{name}/delay={pause:.3f}"
                await call(server, tokens[number % len(tokens)], model, number)
        await counted(server, admin, next(numbers) - day)
        await decisions(server, admin, 3 + day * 5 % 7)
        if day < DAYS - 1:
            await make_older(server)
    body = {"body": request(QUESTIONS[0], "gpt-4o")}
    _, job = await server.ask("POST", "/api/jobs", tokens[0], json=body)
    await server.job_when(tokens[0], job["job_id"], lambda job: job["status"] == "success")
    return job["job_id"]


async def decisions(server: Live, admin: str, number: int) -> None:
    """Hold answers and decide on them, as reviewers do."""
    for index in range(number):
        job_id = await hold(server, index % len(QUESTIONS), QUESTIONS[index % len(QUESTIONS)])
        verdict: dict[str, Any] = {"verdict": "approve", "round": 1}
        if index % 4 == 1:
            verdict |= {"response": EDIT}
        elif index % 6 == 2:
            verdict |= {"verdict": "reject", "reason": REASONS[index % len(REASONS)]}
        await server.ask("POST", f"/api/reviews/{job_id}/decide", admin, json=verdict)


async def counted(server: Live, admin: str, number: int) -> None:
    """Wait until the sums of usage have all `number` calls."""

    async def all_counted() -> bool | None:
        _, report = await server.ask("GET", "/api/usage?by=model", admin)
        return sum(row["jobs"] for row in report["data"]) >= number or None

    await until(all_counted)


def request(question: str, model: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": model, "messages": messages}


async def call(server: Live, token: str, model: str, number: int) -> None:
    question = f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"
    await server.ask("POST", "/v1/chat/completions", token, json=request(question, model))


async def make_older(server: Live) -> None:
    """Move all that there is one day into the past."""
    store: Any = server.services.store
    for column in (jobs.c.created_at, calls.c.created_at):
        await execute(store, sa.update(column.table).values({column: column - DAY_US}))
    sums = (usage_hours.c.hour, usage_days.c.day, latency_hours.c.hour, latency_days.c.day, review_hours.c.hour)
    for column in sums:
        key = column.table.c.key  # it has the time, too
        older = sa.update(column.table).values({column: column - DAY_US, key: sa.literal("older ") + key})
        await execute(store, older)


async def hold(server: Live, number: int, question: str) -> str:
    """Hold an answer to `question`, the second one with a call of a tool; return the id of its job."""
    store = server.services.store
    body, message = request(question, "gpt-4o"), {"role": "assistant", "content": REPLY}
    if number == 1:
        tool = {"name": "create_return", "description": "Opens a return of an order", "parameters": PARAMETERS}
        body |= {"tools": [{"type": "function", "function": tool}], "temperature": 0.2}
        call = {"name": "create_return", "arguments": json.dumps(ARGUMENTS)}
        message = {
            "role": "assistant",
            "content": ANSWER,
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        }
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    values = {"judge": 0.62 + number / 50, "logprob_mean": -0.41, "logprob_min": -3.92, "schema_ok": True}
    signals = {f"signals.{name}": value for name, value in values.items()}
    priority = 9 - number
    job = await leased(store, body=json.dumps(body).encode(), target="support-assistant", model="gpt-4o", user_id=2)
    changes = {
        "response": json.dumps(answer).encode(),
        "ruling": Ruling(outcome="hold", policy="support", version=3, signals=signals),
        "review_priority": priority,
    }
    return (await store.jobs.transition(job.id, a_step("hold", changes=changes))).id


async def edit(reviewer: Person, address: str) -> None:
    """Edit the answer, so that the page shows a difference."""
    await reviewer.visit(address)
    page = reviewer.page
    await page.locator("#lease", has_text="You have this answer").wait_for()
    await page.get_by_label("pickup").check()
    await page.get_by_label("refund_now").uncheck()
    await page.locator(".cm-content").click()
    await reviewer.press("Control+a")
    await page.keyboard.insert_text(EDIT)
    await page.locator("#difference", has_text="Changes").wait_for(state="attached")


async def show(reviewer: Person, name: str, address: str) -> None:
    """Write the pictures of one page: light, dark, and on a phone."""
    page = reviewer.page
    for theme, size in (("light", DESKTOP), ("dark", DESKTOP), ("phone", PHONE)):
        await page.emulate_media(color_scheme="dark" if theme == "dark" else "light", reduced_motion="reduce")
        await page.set_viewport_size(size)  # type: ignore[arg-type]
        await reviewer.visit(address)
        await page.wait_for_timeout(500)  # charts and the editor are drawn
        folder = KEPT if name in IN_DOCS and theme != "phone" else OTHERS
        await page.screenshot(path=folder / f"{name}-{theme}.png", full_page=theme == "phone")


if __name__ == "__main__":
    asyncio.run(main())
