"""A small client in all four forms, with nothing but `websockets`, `msgpack` and Python's own modules."""

import json
import uuid
import zlib

import msgpack
from websockets.sync.client import connect


class Phone:
    """One connection of a device, in one form. The token goes where `carrier` says."""

    def __init__(self, url, token, form, device_id, carrier="header", **options):
        self.msgpack = "msgpack" in form
        self.deflate = form.endswith("+deflate")
        self.packed = False  # whether the last message came compressed
        self.sync_id = str(uuid.uuid4())
        query, headers, protocols = f"device_id={device_id}", {}, [form]
        if carrier == "query":
            query += f"&token={token}"
        elif carrier == "header":
            headers["Authorization"] = f"Bearer {token}"
        elif carrier == "subprotocol":
            protocols.append(f"bearer.{token}")
        # The library offers `permessage-deflate` by default; the server does not accept it and works without.
        self.socket = connect(
            f"{url}?{query}", subprotocols=protocols, additional_headers=headers, open_timeout=10, **options
        )
        assert self.socket.subprotocol == form, self.socket.subprotocol
        assert "Sec-WebSocket-Extensions" not in self.socket.response.headers

    def encode(self, document):
        if self.msgpack:
            return msgpack.packb(document)
        return json.dumps(document).encode()

    def pack(self, document):
        """Makes a frame: with `+deflate` one byte says whether the rest is compressed, which pays from 200 bytes on."""
        message = self.encode(document)
        if self.deflate and len(message) >= 200:
            deflate = zlib.compressobj(wbits=-15)
            return b"\1" + deflate.compress(message) + deflate.flush()
        if self.deflate:
            return b"\0" + message
        return message if self.msgpack else message.decode()

    def unpack(self, frame):
        assert isinstance(frame, bytes if self.msgpack or self.deflate else str), frame
        if self.deflate:
            assert frame[0] in (0, 1), frame[0]
            self.packed = frame[0] == 1
            frame = zlib.decompress(frame[1:], wbits=-15) if self.packed else frame[1:]
            assert not self.packed or len(frame) >= 200, len(frame)
        return msgpack.unpackb(frame) if self.msgpack else json.loads(frame)

    def receive(self, wanted):
        """Returns the next message of the wanted type; live deltas may come between."""
        while True:
            message = self.unpack(self.socket.recv(timeout=20))
            if message["type"] == wanted:
                return message
            assert message["type"] == "server_delta", f"wanted {wanted}: {message}"

    def ask(self, message, wanted):
        """Sends a message with an `id` and returns the answer, which repeats it as `reply_to`."""
        message["id"] = f"m-{uuid.uuid4().hex[:6]}"
        self.socket.send(self.pack(message))
        answer = self.receive(wanted)
        assert answer["reply_to"] == message["id"], answer
        return answer

    def start(self):
        hello = self.receive("connection_established")
        payload = {"data_types": ["ticket"], "total_items": 2, "epoch": hello["epoch"]}
        start = {"type": "start_sync", "sync_id": self.sync_id, "payload": payload}
        started = self.ask(start, "sync_session_started")
        assert started["session_info"]["sync_id"] == self.sync_id, started
        return self

    def pull(self):
        payload = {"data_types": ["ticket"]}
        request = {"type": "request_server_data", "sync_id": self.sync_id, "payload": payload}
        page = self.ask(request, "server_data")
        assert page["has_more"] is False, page
        return page["changes"]

    def close(self):
        self.socket.close(1000, "done")
        assert self.socket.close_code == 1000, self.socket.close_code
