"""Dramatiq with RabbitMQ and Redis: durable, published with confirms; it always acknowledges after the work.

`python dramatiq_app.py enqueue COUNT` and `latency COUNT` are as those of `celery_app.py`; the worker is `dramatiq`.
"""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from producers import run

broker = RabbitmqBroker(url=os.environ["AMQP_URL"], confirm_delivery=True)
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["REDIS_URL"])))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench-dramatiq", store_results=True)
def echo(text: str) -> str:
    """Return the text."""
    return text


def enqueue(number: int) -> None:
    """Enqueue a job."""
    echo.send(f"job {number}")


def ask(number: int) -> None:
    """Enqueue a job, and wait for its result."""
    text = f"latency {number}"
    if echo.send(text).get_result(block=True, timeout=30_000) != text:
        raise SystemExit("The result is wrong.")


if __name__ == "__main__":
    run(enqueue, ask)
