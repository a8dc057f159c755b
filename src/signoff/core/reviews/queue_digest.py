"""The form of digests of review queues: JSON for webhooks, and plain text for e-mail."""

from collections.abc import Sequence
from typing import Any

import msgspec

from signoff.core.reviews.notices import MAX_NAMED, NewsItem, QueueNews
from signoff.core.wire import format_time

KINDS = ("new", "ageing", "escalated")
MORE = f"and more than {MAX_NAMED} in all"


def digest_body(news: QueueNews, public_url: str | None) -> bytes:
    """Return the JSON message: for each kind, how many answers there are, and the first of them with their links."""
    data: dict[str, Any] = {"queue": news.queue.name, "until": format_time(news.until)}
    for kind in KINDS:
        items: Sequence[NewsItem] = getattr(news, kind)
        data[kind] = {
            "count": min(len(items), MAX_NAMED),
            "count_is_capped": len(items) > MAX_NAMED,
            "items": [_item(item, public_url) for item in items[:MAX_NAMED]],
        }
    return msgspec.json.encode({"type": "reviews.waiting", "timestamp": format_time(news.until), "data": data})


def _item(item: NewsItem, public_url: str | None) -> dict[str, Any]:
    url = None if public_url is None else f"{public_url}/dashboard/review/{item.job_id}"
    return {"job_id": item.job_id, "model": item.target, "at": format_time(item.at), "url": url}


def digest_mail(body: bytes) -> tuple[str, str]:
    """Return the subject and the text of the e-mail for a JSON message of `digest_body`."""
    data = msgspec.json.decode(body)["data"]
    parts = [f"{_count(data[kind])} {kind}" for kind in KINDS if data[kind]["count"]]
    lines = [f"The review queue {data['queue']!r} has answers that wait for a person.", ""]
    for kind in KINDS:
        if not data[kind]["count"]:
            continue
        lines.append(f"{kind.capitalize()}:")
        lines += [
            f"  {item['at'][:19]}Z  {item['model']}  {item['url'] or item['job_id']}" for item in data[kind]["items"]
        ]
        if data[kind]["count_is_capped"]:
            lines.append(f"  {MORE}")
        lines.append("")
    return f"Signoff: {', '.join(parts)} in {data['queue']}", "\n".join(lines)


def _count(kind: dict[str, Any]) -> str:
    return f"{kind['count']}{'+' if kind['count_is_capped'] else ''}"
