"""Taskiq with RabbitMQ and Redis: durable, published with confirms, acknowledged when the result is saved.

`python taskiq_app.py enqueue COUNT` and `latency COUNT` are as those of `celery_app.py`; the worker is `taskiq worker`.
"""

import os

from producers import run_async
from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import RedisAsyncResultBackend

broker = AioPikaBroker(os.environ["AMQP_URL"], qos=32).with_result_backend(
    RedisAsyncResultBackend(os.environ["REDIS_URL"], keep_results=True)
)


@broker.task(task_name="echo")
async def echo(text: str) -> str:
    """Return the text."""
    return text


async def enqueue(number: int) -> None:
    """Enqueue a job."""
    await echo.kiq(f"job {number}")


async def ask(number: int) -> None:
    """Enqueue a job, and wait for its result, for which Taskiq can only poll."""
    text = f"latency {number}"
    job = await echo.kiq(text)
    result = await job.wait_result(check_interval=0.002, timeout=30)
    if result.return_value != text:
        raise SystemExit("The result is wrong.")


if __name__ == "__main__":
    run_async(broker.startup, enqueue, ask, broker.shutdown)
