"""A model without request ids: it reads a line and writes a line."""

import json
import sys
import time

for line in sys.stdin:
    body = json.loads(line)["body"]
    if isinstance(body, dict):
        time.sleep(body.get("seconds", 0))
        if "says" in body:
            sys.stdout.write(body["says"] + "\n")
            continue
    sys.stdout.write(json.dumps({"length": len(json.dumps(body)), "of": body}) + "\n")
