"""Follows a socket with the package `websockets` as it is: python follow.py URL TOKEN. It comes back with the last id."""

import json
import sys
import time

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

url, token = sys.argv[1:]
seen, last = set(), None
end = time.monotonic() + 50
while time.monotonic() < end:
    resume = f"&last_event_id={last}" if last else ""
    try:
        with connect(f"{url}?token={token}{resume}", open_timeout=10) as socket:
            for text in socket:
                event = json.loads(text)
                if event["type"] == "connection_established":
                    last = last or event["position"]
                    print("open", flush=True)
                if "topic" not in event or event["id"] in seen:
                    continue
                seen.add(event["id"])
                last = event["id"]
                print(event["data"]["n"], flush=True)
                if event["data"].get("last"):
                    sys.exit(0)
    except (ConnectionClosed, InvalidHandshake, OSError, EOFError):
        pass
    print("cut", flush=True)
    time.sleep(0.1)
sys.exit(3)
