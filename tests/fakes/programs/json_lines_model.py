"""A model that reads and writes JSON lines, and behaves as its requests say."""

import json
import os
import sys
import threading
import time

LOCK = threading.Lock()


def main() -> None:
    journal = sys.argv[1] if len(sys.argv) > 1 else None
    if journal:
        with open(journal, "a", encoding="ascii") as starts:  # noqa: PTH123 - it starts faster without pathlib
            starts.write(f"{os.getpid()}\n")
    sys.stderr.write("ready\n")
    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


def answer(request: dict) -> None:
    body = request["body"] if isinstance(request["body"], dict) else {"text": request["body"]}
    time.sleep(body.get("seconds", 0))
    if "exit" in body:
        os._exit(body["exit"])
    if "error" in body:
        say({"id": request["id"], "error": body["error"]})
        return
    for piece in body.get("pieces", ()):
        say({"id": request["id"], "delta": piece})
    if "noise" in body:
        write(body["noise"])
    if "size" in body:
        say({"id": request["id"], "body": "x" * body["size"]})
    elif body.get("pieces"):
        say({"id": request["id"], "body": None})
    else:
        say(
            {
                "id": request["id"],
                "body": {"pid": os.getpid(), "operation": request["operation"], "asked": request["body"]},
            }
        )


def say(line: object) -> None:
    write(json.dumps(line))


def write(text: str) -> None:
    with LOCK:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


main()
