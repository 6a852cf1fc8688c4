"""Speaks every form of the protocol with nothing but `websockets`, `msgpack` and Python's own modules.

    python forms.py ws://127.0.0.1:8000/ws/mobile/sync TOKEN

The token must not name a device. The script ends with an error at the first answer that is not as documented. It waits
until the server takes a silent client for dead: `heartbeat_s = 3` in its configuration spares time.
"""

import json
import logging
import sys
import uuid

import msgpack
from phone import Phone
from websockets.exceptions import ConnectionClosed

URL, TOKEN = sys.argv[1:]
RUN = uuid.uuid4().hex[:8]
FORMS = [f"driftline.v1.{form}" for form in ("json", "msgpack", "json+deflate", "msgpack+deflate")]

FIELDS = {
    "text": "Dach undicht – 雨 🌧",
    "long": "the roof leaks again; " * 40,
    "yes": True,
    "none": None,
    "small": -7,
    "big": 2**53 - 1,
    "half": 0.5,
    "far": 1e300,
    "list": [1, "two", [3.25, None], {"four": 4}],
}


def connect(form, device, carrier="header", **options):
    return Phone(URL, TOKEN, form, f"{device}-{RUN}", carrier, **options)


def close_code(phone):
    """Reads until the server has closed the connection, and tells with which code."""
    try:
        while True:
            phone.socket.recv(timeout=20)
    except ConnectionClosed as closed:
        return closed.rcvd.code


def sync(form):
    for carrier in ("query", "header", "subprotocol"):
        connect(form, "carrier", carrier).start().close()
    phone = connect(form, f"ada-{FORMS.index(form)}").start()
    record = f"{form}-{RUN}".replace(".", "-").replace("+", "-")

    def item(n, fields):
        made = {"op_id": str(uuid.uuid4()), "n": n, "kind": "ticket", "id": f"{record}-{n}"}
        return {**made, "op": "create", "fields": fields}

    payload = {"batch": [item(1, FIELDS), item(2, {"text": "short"})], "batch_seq": 1}
    ack = phone.ask({"type": "sync_data", "sync_id": phone.sync_id, "payload": payload}, "ack")
    assert (ack["of"], ack["status"], ack["synced"]) == ("sync_data", "ok", 2), ack
    stored = {change["id"]: change["fields"] for change in phone.pull()}
    assert stored[f"{record}-1"] == FIELDS and phone.packed == phone.deflate, stored
    assert phone.ask({"type": "ping", "timestamp": 123}, "pong")["timestamp"] == 123
    return phone


def mistakes(phone):
    unknown = phone.ask({"type": "make_coffee"}, "error")
    assert (unknown["code"], unknown["retryable"]) == ("UNKNOWN_MESSAGE_TYPE", False), unknown
    nonsense = b"\xc1" if phone.msgpack else b"{"
    if phone.deflate:
        nonsense = b"\0" + nonsense
    phone.socket.send(nonsense if phone.msgpack or phone.deflate else nonsense.decode())
    error = phone.receive("error")
    assert error["code"] == ("MSGPACK_DECODE_ERROR" if phone.msgpack else "JSON_DECODE_ERROR"), error
    # A message in three fragments is one message.
    frame = phone.pack({"type": "ping", "timestamp": 456})
    phone.socket.send(iter([frame[:1], frame[1:9], frame[9:]]))
    assert phone.receive("pong")["timestamp"] == 456
    if not phone.deflate:
        # The frame says in which encoding it comes, and the subprotocol in which the answer goes.
        ping = {"type": "ping", "timestamp": 789}
        phone.socket.send(json.dumps(ping) if phone.msgpack else msgpack.packb(ping))
        assert phone.receive("pong")["timestamp"] == 789


def ends(form, phone):
    # The same device again: the newest connection wins.
    second = connect(form, f"ada-{FORMS.index(form)}").start()
    assert phone.receive("error")["code"] == "REPLACED"
    assert close_code(phone) == 4510
    second.close()
    if form.endswith("+deflate"):
        for frame, code in (('{"type":"ping"}', 1003), (b"\2{}", 1007)):
            other = connect(form, "eve").start()
            other.socket.send(frame)
            assert close_code(other) == code, code


class Record(logging.Handler):
    """Keeps what the library logs: it tells of pings there and nowhere else."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def silence():
    """The library answers the server's pings by itself, which does not prove that the app lives: it must go."""
    log = Record()
    logger = logging.Logger("silence", logging.DEBUG)
    logger.addHandler(log)
    phone = connect(FORMS[0], "quiet", logger=logger, ping_interval=None)
    hello = phone.receive("connection_established")
    assert hello["heartbeat_timeout_s"] == 2 * hello["heartbeat_interval_s"], hello
    assert phone.receive("error")["code"] == "HEARTBEAT_TIMEOUT"
    assert close_code(phone) == 4009
    assert any("< PING" in line for line in log.lines) and any("> PONG" in line for line in log.lines), log.lines


def main():
    for form in FORMS:
        phone = sync(form)
        mistakes(phone)
        ends(form, phone)
    # The same document comes in every form.
    seen = []
    for form in FORMS:
        reader = connect(form, "reader").start()
        seen.append(reader.pull())
        reader.close()
    assert len(seen[0]) >= 2 * len(FORMS)
    assert all(changes == seen[0] for changes in seen)
    silence()
    print("forms.py: all answers are as documented")


main()
