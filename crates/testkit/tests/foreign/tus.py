"""Uploads with `tuspy`, a checksum with every chunk, and checks every answer of the server.

    python tus.py http://127.0.0.1:8000/files TOKEN SCENARIO FOLDER

The scenarios are at the end; `all` runs them one after the other. The folder holds the files that are uploaded. The
script prints one line of JSON with what the server must hold now, for `all` an array of them, and ends with an error at
the first answer that is not as the protocol says.
"""

import base64
import faulthandler
import hashlib
import http.client
import json
import pathlib
import random
import sys
import urllib.parse
import uuid

from tusclient.client import TusClient

ENDPOINT, TOKEN, WANTED, FOLDER = sys.argv[1:]
RUN = uuid.uuid4().hex[:8]
MIB = 1 << 20
# The last chunk is to be shorter.
SIZE = 4 * MIB + 12_345
METADATA = {"filename": "Straße 日本.bin", "filetype": "application/x-driftline"}
CHUNK = "application/offset+octet-stream"


def request(method, url, body=None, **headers):
    """Sends one request by hand; returns the status and the headers as they came."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {"Authorization": f"Bearer {TOKEN}", "Tus-Resumable": "1.0.0", **headers}
    connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), body, headers)
    response = connection.getresponse()
    answer = response.status, response.headers
    response.read()
    connection.close()
    return answer


def checksum(algorithm, body):
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, body).digest()).decode()}"


class Scenario:
    """One file, and what is asked about it."""

    def __init__(self, name, size=SIZE, metadata=METADATA):
        self.name = name
        self.bytes = random.Random(name).randbytes(size)
        self.metadata = metadata
        self.path = pathlib.Path(FOLDER, f"py-{name}-{RUN}.bin")
        self.path.write_bytes(self.bytes)

    def uploader(self, url=None, **options):
        """Makes a client of its own, which asks where the server is when it has an address."""
        client = TusClient(ENDPOINT, headers={"Authorization": f"Bearer {TOKEN}"})
        options = {"metadata": self.metadata, "chunk_size": MIB, "upload_checksum": True, **options}
        return client.uploader(str(self.path), url=url, **options)

    def offset(self, url):
        status, headers = request("HEAD", url)
        assert status in (200, 204), (self.name, status, headers.items())
        assert "no-store" in headers.get("Cache-Control", ""), (self.name, headers.items())
        return int(headers["Upload-Offset"]), headers

    def patch(self, url, offset, body, **headers):
        return request("PATCH", url, body, Upload_Offset=str(offset), Content_Type=CHUNK, **headers)

    def end(self, url, **more):
        """Checks that the upload is whole, and gives what the server must hold."""
        offset, headers = self.offset(url)
        assert (offset, int(headers["Upload-Length"])) == (len(self.bytes),) * 2, (self.name, headers.items())
        encoded = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in self.metadata.items())
        assert headers.get("Upload-Metadata", "") == encoded, (self.name, headers.items())
        sha256 = hashlib.sha256(self.bytes).hexdigest()
        upload_ids = [urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]]
        told = {"scenario": self.name, "url": url, "size": len(self.bytes), "sha256": sha256, "upload_ids": upload_ids}
        return told | more


def resume():
    """Stops after two chunks, and a new client goes on by the address alone."""
    run = Scenario("resume")
    first = run.uploader()
    first.upload(stop_at=2 * MIB)
    assert first.offset == 2 * MIB, first.offset
    second = run.uploader(first.url)
    assert second.offset == 2 * MIB, second.offset
    second.upload()
    assert second.offset == len(run.bytes), second.offset
    return run.end(first.url, resumed_at=[2 * MIB])


def bad_checksum():
    """A chunk with a checksum that is not its own is not taken, and the client goes on as if it had not been sent."""
    run = Scenario("bad-checksum")
    client = run.uploader()
    client.upload_chunk()
    url, chunk = client.url, run.bytes[MIB : MIB + 100_000]
    refusals = [(checksum("sha1", b"other"), 460), (checksum("sha256", b"other"), 460), (checksum("md5", chunk), 400)]
    for wrong, expected in refusals:
        status, headers = run.patch(url, MIB, chunk, Upload_Checksum=wrong)
        assert status == expected, (wrong, status, headers.items())
        assert run.offset(url)[0] == MIB, wrong
    status, headers = run.patch(url, MIB, chunk, Upload_Checksum=checksum("sha256", chunk))
    assert (status, headers["Upload-Offset"]) == (204, str(MIB + len(chunk))), (status, headers.items())
    run.uploader(url).upload()
    return run.end(url)


def conflict():
    """A chunk that does not begin where the server is changes nothing."""
    run = Scenario("conflict")
    client = run.uploader()
    client.upload_chunk()
    for offset in (0, MIB - 1, MIB + 1):
        status, headers = run.patch(client.url, offset, b"x" * 1000)
        assert status == 409, (offset, status, headers.items())
        assert run.offset(client.url)[0] == MIB, offset
    client.upload()
    return run.end(client.url)


def empty():
    """A file of no bytes is whole as soon as it is created. Without metadata `tuspy` sends an empty header."""
    run = Scenario("empty", size=0, metadata={})
    client = run.uploader()
    client.upload()
    return run.end(client.url)


def main():
    # `tuspy` waits for ever for an answer; this ends the script where it waits.
    faulthandler.dump_traceback_later(60, exit=True)
    scenarios = {"resume": resume, "bad-checksum": bad_checksum, "conflict": conflict, "empty": empty}
    assert WANTED == "all" or WANTED in scenarios, f"the scenarios are all, {', '.join(scenarios)}"
    told = [scenario() for scenario in scenarios.values()] if WANTED == "all" else scenarios[WANTED]()
    print(json.dumps(told))


main()
