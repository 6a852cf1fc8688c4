"""The HTTP twin in both encodings and all content codings, with Python's `http.client`, `msgpack` and `zstandard`.

    python codings.py http://127.0.0.1:8000 TOKEN

Every body goes out in one encoding and one content coding, and comes back in the same. The script ends with an error at
the first answer that is not as documented.
"""

import gzip
import http.client
import json
import sys
import urllib.parse
import uuid

import msgpack
import zstandard

URL, TOKEN = sys.argv[1:]
RUN = uuid.uuid4().hex[:8]
ENCODINGS = {
    "application/json": (lambda document: json.dumps(document).encode(), json.loads),
    "application/msgpack": (msgpack.packb, msgpack.unpackb),
}
CODINGS = {
    "identity": (bytes, bytes),
    "gzip": (gzip.compress, gzip.decompress),
    "zstd": (zstandard.compress, lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body)),
}
FIELDS = {
    "text": "Dach undicht – 雨 🌧",
    "long": "the roof leaks again; " * 100,
    "yes": True,
    "none": None,
    "small": -7,
    "big": 2**53 - 1,
    "half": 0.5,
    "list": [1, "two", [3.25, None], {"four": 4}],
}


def request(method, path, body=None, **headers):
    """Sends one request; returns the status, the headers and the body as they came."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(URL).netloc, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **headers})
    response = connection.getresponse()
    answer = response.status, response.headers, response.read()
    connection.close()
    return answer


def talk(media, coding, method, path, document=None):
    """Sends and reads a document in an encoding and a content coding."""
    (encode, decode), (pack, unpack) = ENCODINGS[media], CODINGS[coding]
    headers = {"Accept": media, "Accept_Encoding": coding}
    body = None
    if document is not None:
        body = pack(encode(document))
        headers |= {"Content_Type": media} | ({} if coding == "identity" else {"Content_Encoding": coding})
    status, headers, body = request(method, path, body, **headers)
    assert headers["Content-Type"] == media, (status, headers["Content-Type"], body[:200])
    # What is short comes as it is.
    came = headers.get("Content-Encoding", "identity")
    assert came == coding or (came == "identity" and len(body) < 1024), headers.items()
    answer = decode(unpack(body) if came == coding else body)
    assert status == 200, answer
    return answer


def push(media, coding, device):
    item = {"op_id": str(uuid.uuid4()), "n": 1, "kind": "ticket", "id": device, "op": "create", "fields": FIELDS}
    ack = talk(media, coding, "POST", "/api/v1/sync", {"device_id": device, "batch": [item]})["ack"]
    assert (ack["status"], ack["synced"]) == ("ok", 1), ack


def refused(status, code, body, **headers):
    got, _, problem = request("POST", "/api/v1/sync", body, Accept="application/json", **headers)
    assert (got, json.loads(problem)["code"]) == (status, code), (got, problem)


def main():
    ways = [(media, coding) for media in ENCODINGS for coding in CODINGS]
    for number, (media, coding) in enumerate(ways):
        push(media, coding, f"device-{number}-{RUN}")
    # The same document comes in every encoding and every coding.
    pages = [talk(*way, "GET", "/api/v1/changes?data_types=ticket")["changes"] for way in ways]
    assert len(pages[0]) == len(ways) and all(page == pages[0] for page in pages)
    assert all(change["fields"] == FIELDS for change in pages[0])

    json_, bomb = "application/json", gzip.compress(b" " * (64 << 20))
    refused(415, "UNSUPPORTED_MEDIA_TYPE", b"{}", Content_Type=json_, Content_Encoding="br")
    refused(400, "JSON_DECODE_ERROR", gzip.compress(b"{"), Content_Type=json_, Content_Encoding="gzip")
    refused(400, "MSGPACK_DECODE_ERROR", b"\xc1", Content_Type="application/msgpack")
    refused(413, "MESSAGE_TOO_LARGE", bomb, Content_Type=json_, Content_Encoding="gzip")
    print("codings.py: all answers are as documented")


main()
