"""Celery with RabbitMQ and Redis: durable, acknowledged late, published with confirms.

`python celery_app.py enqueue COUNT` enqueues jobs and prints the seconds that it took; `python celery_app.py latency
COUNT` prints the milliseconds from each of COUNT jobs to its result. The worker is `celery -A celery_app worker`.
"""

import os

from celery import Celery
from producers import run

app = Celery("bench", broker=os.environ["AMQP_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=4,
    broker_transport_options={"confirm_publish": True},
    broker_pool_limit=32,
    task_default_queue="bench-celery",
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
)


@app.task(name="echo")
def echo(text: str) -> str:
    """Return the text."""
    return text


def enqueue(number: int) -> None:
    """Enqueue a job."""
    echo.delay(f"job {number}")


def ask(number: int) -> None:
    """Enqueue a job, and wait for its result."""
    text = f"latency {number}"
    if echo.delay(text).get(timeout=30, interval=0.001) != text:
        raise SystemExit("The result is wrong.")


if __name__ == "__main__":
    run(enqueue, ask)
