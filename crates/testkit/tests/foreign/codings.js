// The HTTP twin in both encodings and with gzip, with node's own `http` and `zlib`, and `@msgpack/msgpack`.
//
//     node codings.js http://127.0.0.1:8000 TOKEN
//
// Every body goes out in one encoding and one content coding, and comes back in the same. A node that has zstd tries it
// too. The script ends with an error at the first answer that is not as documented.
"use strict";

const assert = require("node:assert");
const { randomUUID } = require("node:crypto");
const http = require("node:http");
const zlib = require("node:zlib");
const { decode, encode } = require("@msgpack/msgpack");

const [url, token] = process.argv.slice(2);
const RUN = randomUUID().slice(0, 8);
const ENCODINGS = {
  "application/json": { encode: JSON.stringify, decode: JSON.parse },
  "application/msgpack": { encode, decode },
};
const CODINGS = {
  identity: { pack: Buffer.from, unpack: (body) => body },
  gzip: { pack: zlib.gzipSync, unpack: zlib.gunzipSync },
};
if (zlib.zstdCompressSync) CODINGS.zstd = { pack: zlib.zstdCompressSync, unpack: zlib.zstdDecompressSync };

const FIELDS = {
  text: "Dach undicht – 雨 🌧",
  long: "the roof leaks again; ".repeat(100),
  yes: true,
  none: null,
  small: -7,
  big: 2 ** 53 - 1,
  half: 0.5,
  list: [1, "two", [3.25, null], { four: 4 }],
};

// Sends one request and gives the status, the headers and the body as they came.
function request(method, path, headers, body) {
  return new Promise((resolve, reject) => {
    headers = { authorization: `Bearer ${token}`, ...headers };
    const sent = http.request(url + path, { method, headers, agent: false, timeout: 20_000 }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () =>
        resolve({ status: response.statusCode, headers: response.headers, body: Buffer.concat(parts) }));
    });
    sent.on("error", reject);
    sent.on("timeout", () => sent.destroy(new Error("no answer in time")));
    sent.end(body);
  });
}

// Sends and reads a document in an encoding and a content coding.
async function talk([media, coding], method, path, document) {
  const headers = { accept: media, "accept-encoding": coding };
  let body;
  if (document) {
    headers["content-type"] = media;
    if (coding !== "identity") headers["content-encoding"] = coding;
    body = CODINGS[coding].pack(ENCODINGS[media].encode(document));
  }
  const answer = await request(method, path, headers, body);
  assert.strictEqual(answer.headers["content-type"], media, answer.body.toString());
  // What is short comes as it is.
  const came = answer.headers["content-encoding"] ?? "identity";
  assert(came === coding || (came === "identity" && answer.body.length < 1024), came);
  const read = ENCODINGS[media].decode(CODINGS[came].unpack(answer.body));
  assert.strictEqual(answer.status, 200, JSON.stringify(read));
  return read;
}

async function main() {
  const ways = Object.keys(ENCODINGS).flatMap((media) => Object.keys(CODINGS).map((coding) => [media, coding]));
  for (const [number, way] of ways.entries()) {
    const device_id = `device-${number}-${RUN}`;
    const item = { op_id: randomUUID(), n: 1, kind: "ticket", id: device_id, op: "create", fields: FIELDS };
    const { ack } = await talk(way, "POST", "/api/v1/sync", { device_id, batch: [item] });
    assert.deepStrictEqual([ack.status, ack.synced], ["ok", 1]);
  }
  // The same document comes in every encoding and every coding.
  const pages = [];
  for (const way of ways) pages.push((await talk(way, "GET", "/api/v1/changes?data_types=ticket")).changes);
  assert.strictEqual(pages[0].length, ways.length);
  for (const page of pages) assert.deepStrictEqual(page, pages[0]);
  for (const change of pages[0]) assert.deepStrictEqual(change.fields, FIELDS);
  console.log("codings.js: all answers are as documented");
}

main();
