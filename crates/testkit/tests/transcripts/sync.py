"""Two phones edit one record, over the WebSocket, with nothing but Python's `websockets`.

    python sync.py ws://127.0.0.1:8000/ws/mobile/sync TOKEN

The token must not name a device, because this script connects as two. Every line sent starts with `>` and every line
received with `<`. The script ends with an error at the first answer that is not as documented.
"""

import json
import re
import sys
import time
import uuid

from websockets.sync.client import connect

URL, TOKEN = sys.argv[1], sys.argv[2]
RUN = uuid.uuid4().hex[:8]
RECORD = f"t-{RUN}"


class Phone:
    """One device: its connection, its sync session and its clock."""

    def __init__(self, name):
        self.name = name
        self.device_id = f"{name}-{RUN}"
        self.sync_id = str(uuid.uuid4())
        self.n = 0
        self.hlc = "000000000000-0000"
        self.deltas = []
        self.socket = connect(f"{URL}?device_id={self.device_id}&token={TOKEN}", open_timeout=10)

    def send(self, message):
        print(f"{self.name} > {json.dumps(message)}", flush=True)
        self.socket.send(json.dumps(message))

    def receive(self, wanted):
        """Returns the next message of the wanted type; live deltas may come between and are kept."""
        if wanted == "server_delta" and self.deltas:
            return self.deltas.pop(0)
        while True:
            text = self.socket.recv(timeout=10)
            print(f"{self.name} < {text}", flush=True)
            message = json.loads(text)
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", message["server_time"]), message
            self.hlc = max(self.hlc, message.get("hlc", self.hlc))
            if message["type"] == wanted:
                return message
            assert message["type"] == "server_delta", f"wanted {wanted}, got {message}"
            self.deltas.append(message)

    def ask(self, message, wanted):
        """Sends a message with an `id` and returns the answer, which repeats it as `reply_to`."""
        message["id"] = f"m-{uuid.uuid4().hex[:6]}"
        self.send(message)
        answer = self.receive(wanted)
        assert answer["reply_to"] == message["id"], answer
        return answer

    def stamp(self):
        """Returns a clock stamp above everything this phone has seen."""
        now, (millis, counter) = int(time.time() * 1000), self.hlc.split("-")
        if now > int(millis, 16):
            self.hlc = f"{now:012x}-0000"
        else:
            self.hlc = f"{millis}-{int(counter, 16) + 1:04x}"
        return self.hlc

    def item(self, op, record, base_version=None, **fields):
        """Makes an item; what is sent again must be the very same item."""
        self.n += 1
        item = {"op_id": str(uuid.uuid4()), "n": self.n, "kind": "ticket", "id": record, "op": op}
        if base_version is not None:
            item["base_version"] = base_version
        item["fields"] = fields
        item["hlc"] = self.stamp()
        return item

    def push(self, batch_seq, *items):
        payload = {"batch": list(items), "batch_seq": batch_seq}
        message = {"type": "sync_data", "sync_id": self.sync_id, "payload": payload}
        ack = self.ask(message, "ack")
        assert (ack["of"], ack["sync_id"], ack["batch_seq"]) == ("sync_data", self.sync_id, batch_seq), ack
        assert ack["synced"] + ack["failed"] == len(items) == len(ack["results"]), ack
        assert [result["index"] for result in ack["results"]] == list(range(len(items))), ack
        assert [result["op_id"] for result in ack["results"]] == [item["op_id"] for item in items], ack
        return ack

    def close(self):
        self.socket.close()


def start(phone):
    hello = phone.receive("connection_established")
    assert hello["device_id"] == phone.device_id, hello
    for field in ("connection_id", "user_id", "tenant", "role", "roles", "heartbeat_interval_s", "heartbeat_timeout_s"):
        assert field in hello, f"{field} is missing: {hello}"
    assert re.fullmatch(r"[0-9a-f]{8}", hello["epoch"]), hello
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]{4}", hello["hlc"]), hello
    assert hello["features"]["max_batch_items"] > 0 and hello["features"]["max_message_bytes"] > 0, hello

    payload = {"data_types": ["ticket"], "total_items": 1, "epoch": hello["epoch"]}
    started = phone.ask({"type": "start_sync", "sync_id": phone.sync_id, "payload": payload}, "sync_session_started")
    info = started["session_info"]
    assert started["sync_id"] == info["sync_id"] == phone.sync_id, started
    assert info["epoch"] == hello["epoch"] and info["seq"] >= 0 and info["acked_batches"] == [], started
    for field in ("max_batch_items", "max_message_bytes", "policies", "expires_at"):
        assert field in info, f"{field} is missing: {started}"


def pull(phone, cursor=None):
    """Pulls until the phone is caught up; returns the changes by record and the last page."""
    changes = {}
    while True:
        payload = {"data_types": ["ticket"], "limit": 500}
        if cursor is not None:
            payload["cursor"] = cursor
        message = {"type": "request_server_data", "sync_id": phone.sync_id, "payload": payload}
        page = phone.ask(message, "server_data")
        changes.update({change["id"]: change for change in page["changes"]})
        cursor = page["cursor"]
        if not page["has_more"]:
            return changes, page


def main():
    # Ada makes a ticket. One item, one result, and the version is the tenant's sequence number.
    ada = Phone("ada")
    start(ada)
    create = ada.item("create", RECORD, title="Roof leaks", status="open", priority="low")
    ack = ada.push(1, create)
    assert ack["status"] == "ok" and ack["results"][0]["code"] == "applied", ack
    base = ack["results"][0]["version"]
    assert base == ack["seq"], ack

    # Ben connects and pulls it.
    ben = Phone("ben")
    start(ben)
    changes, page = pull(ben)
    assert changes[RECORD]["change"] == "put" and changes[RECORD]["version"] == base, changes
    assert changes[RECORD]["fields"] == {"title": "Roof leaks", "status": "open", "priority": "low"}, changes
    assert page["seq"] == base, page

    # Both now edit version `base`. Ada's edit arrives first, and Ben hears of it while his own is still unsent.
    patch = ada.item("patch", RECORD, base, priority="high", assignee="ada")
    first = ada.push(2, patch)["results"][0]
    assert first["code"] == "applied" and first["version"] > base, first
    delta = ben.receive("server_delta")
    assert (delta["prev_seq"], delta["seq"]) == (page["seq"], first["version"]), delta
    assert isinstance(delta["cursor"], str) and delta["changes"][0]["id"] == RECORD, delta
    assert delta["changes"][0]["change"] == "patch", delta
    assert delta["changes"][0]["fields"] == {"priority": "high", "assignee": "ada"}, delta

    # An answer got lost: Ada sends the same item again. It is recognised and not applied twice.
    again = ada.push(3, patch)["results"][0]
    assert again["duplicate"] is True and again["version"] == first["version"], again

    # Ben sends his edit of the old version, and an edit of a record that does not exist. Both touched `priority`: a
    # conflict, decided by `field_merge`, and the later clock wins. The bad item stops nothing.
    stale = ben.item("patch", RECORD, base, priority="medium", note="bring a ladder")
    ack = ben.push(1, stale, ben.item("patch", f"missing-{RUN}", base, title="nobody"))
    assert (ack["status"], ack["synced"], ack["failed"], ack["conflicts"]) == ("partial", 1, 1, 1), ack
    merged, gone = ack["results"]
    assert gone["code"] == "gone", gone
    assert merged["code"] == "merged" and merged["winners"] == {"priority": "client"}, merged
    agreed = {
        "title": "Roof leaks",
        "status": "open",
        "priority": "medium",
        "assignee": "ada",
        "note": "bring a ladder",
    }
    assert merged["record"]["deleted"] is False and merged["record"]["fields"] == agreed, merged

    # Ada hears of it, and both phones agree.
    delta = ada.receive("server_delta")
    assert delta["changes"][0]["version"] == merged["version"] == merged["record"]["version"], delta
    assert delta["changes"][0]["fields"] == {"priority": "medium", "note": "bring a ladder"}, delta
    changes, _ = pull(ada)
    assert changes[RECORD]["fields"] == agreed, changes

    # Signs of life, and an error that closes nothing.
    beat = ben.ask({"type": "heartbeat", "payload": {"last_seq": delta["seq"], "queue_depth": 0}}, "heartbeat_ack")
    assert beat["server_seq"] == delta["seq"] and beat["behind"] == 0, beat
    ben.send({"type": "ping", "timestamp": 123})
    assert ben.receive("pong")["timestamp"] == 123
    error = ben.ask({"type": "make_coffee"}, "error")
    assert error["code"] == "UNKNOWN_MESSAGE_TYPE" and error["retryable"] is False, error
    assert error["message"] and error["correlation_id"], error

    for phone, items in ((ada, 3), (ben, 2)):
        ended = phone.ask({"type": "end_sync", "sync_id": phone.sync_id}, "sync_session_ended")
        totals = ended["totals"]
        assert ended["sync_id"] == phone.sync_id and totals["items"] == items, ended
        assert totals["synced"] + totals["failed"] == items, ended
        assert {"batches", "conflicts", "pulled"} <= totals.keys(), ended
        phone.close()
    print("sync.py: all answers are as documented")


main()
