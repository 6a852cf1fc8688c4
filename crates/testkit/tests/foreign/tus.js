// Uploads with `tus-js-client` in every way it knows, and checks every answer of the server.
//
//     node tus.js http://127.0.0.1:8000/files TOKEN SCENARIO FOLDER
//
// The scenarios are at the end; `all` runs them one after the other. The folder holds files that are uploaded, and what
// a client keeps for the next one. The script prints one line of JSON with what the server must hold now, for `all` an
// array of them, and ends with an error at the first answer that is not as the protocol says.
"use strict";

const assert = require("node:assert");
const { createCipheriv, createHash, randomUUID } = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const { Readable } = require("node:stream");
const { setTimeout: sleep } = require("node:timers/promises");
const tus = require("tus-js-client");

const [endpoint, token, wanted, folder] = process.argv.slice(2);
const RUN = randomUUID().slice(0, 8);
const MIB = 1 << 20;
// No size is a multiple of a chunk, because the last one is to be shorter.
const SIZE = 3 * MIB + 12_345;
const METADATA = { filename: "Straße 日本.bin", filetype: "application/x-driftline" };
const GOOD = { Authorization: `Bearer ${token}` };
const GARBAGE = { Authorization: "Bearer garbage" };

// Makes bytes that look like chance, always the same from the same seed.
function bytesOf(seed, size) {
  const key = createHash("sha256").update(seed).digest().subarray(0, 16);
  return createCipheriv("aes-128-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(size));
}

const encoded = Object.entries(METADATA)
  .map(([key, value]) => `${key} ${Buffer.from(value).toString("base64")}`)
  .join(",");

// Gives a body in small pieces and with pauses, so that there is time to stop in its middle.
async function* trickle(body) {
  for (let at = 0; at < body.length; at += 16_381) {
    yield body.subarray(at, at + 16_381);
    await sleep(4);
  }
}

// The client's own way to send requests, but slowly.
class SlowStack extends tus.DefaultHttpStack {
  createRequest(method, url) {
    const request = super.createRequest(method, url);
    const send = request.send.bind(request);
    request.send = (body) => {
      if (!body?.size) return send(body);
      return send(Object.assign(Readable.from(trickle(body), { objectMode: false }), { size: body.size }));
    };
    return request;
  }
}

// One scenario: its bytes, and the log of all that its uploads asked and were told.
class Scenario {
  constructor(name, size = SIZE) {
    this.name = name;
    this.bytes = bytesOf(name, size);
    this.log = [];
    // Once a request was stopped, it may be at work yet when the next one comes: then the client has to ask again.
    this.patient = false;
    const urls = path.join(folder, `${name}-${RUN}.json`);
    this.options = {
      endpoint,
      headers: GOOD,
      metadata: METADATA,
      urlStorage: new tus.FileUrlStorage(urls),
      removeFingerprintOnSuccess: true,
      onAfterResponse: (request, response) => void this.log.push(this.noted(request, response)),
    };
  }

  noted(request, response) {
    const sent = request.getUnderlyingObject().getHeaders();
    const overridden = request.getHeader("X-HTTP-Method-Override");
    return {
      method: overridden ?? request.getMethod(),
      verb: request.getMethod(),
      url: request.getURL(),
      sent,
      status: response.getStatus(),
      got: response.getUnderlyingObject().headers,
      body: response.getBody(),
    };
  }

  // Runs a client of its own to its end, and gives it. With `stop` it is slow, and is stopped in the middle of a
  // request when so many bytes are under way. It goes on with what an earlier one has left.
  async client({ stop, terminate = false, ...given } = {}, input = this.bytes) {
    if (stop) this.patient = true;
    const options = { ...this.options, ...(this.patient ? {} : { retryDelays: null }) };
    if (stop) options.httpStack = new SlowStack();
    let upload;
    const ended = new Promise((resolve, reject) => {
      // Bytes of some parts go out before the places of all are known and written down.
      let stopping = false;
      const onProgress = async (sent) => {
        if (stopping || !(sent >= stop)) return;
        const kept = await upload.findPreviousUploads().catch(() => []);
        if (stopping || kept.length === 0) return;
        stopping = true;
        resolve(upload.abort(terminate));
      };
      const onSuccess = () => (stop ? reject(new Error(`${this.name}: nothing was left to be stopped`)) : resolve());
      upload = new tus.Upload(input, { ...options, ...given, onProgress, onSuccess, onError: reject });
    });
    const [previous, ...others] = await upload.findPreviousUploads();
    assert.deepStrictEqual(others, [], this.name);
    if (previous) upload.resumeFromPreviousUpload(previous);
    upload.start();
    await ended;
    return upload;
  }

  // Goes on with a new client, which creates nothing but what joins parts.
  async resume(options) {
    const before = this.log.length;
    const upload = await this.client(options);
    const created = this.log.slice(before).filter((step) => step.method === "POST" && !joins(step));
    assert.deepStrictEqual(created, [], this.name);
    return upload;
  }

  // Checks each answer by itself.
  check() {
    for (const step of this.log) {
      const told = `${this.name}: ${JSON.stringify(step, null, 1)}`;
      assert.strictEqual(step.got["tus-resumable"], "1.0.0", told);
      if (this.patient && [409, 423].includes(step.status)) continue;
      if (step.method === "POST") {
        assert.strictEqual(step.status, 201, told);
        assert(step.got.location, told);
      } else if (step.method === "PATCH") {
        assert.strictEqual(step.status, 204, told);
        const [from, to] = [Number(step.sent["upload-offset"]), Number(step.got["upload-offset"])];
        const length = Number(step.sent["content-length"] ?? 0);
        assert.strictEqual(step.sent["content-type"], "application/offset+octet-stream", told);
        assert.strictEqual(to, from + length, told);
      } else if (step.method === "HEAD") {
        assert([200, 204].includes(step.status), told);
        assert.match(step.got["cache-control"] ?? "", /no-store/, told);
        assert.match(step.got["upload-offset"], /^\d+$/, told);
      }
    }
  }

  steps(method) {
    return this.log.filter((step) => step.method === method && step.status < 300);
  }

  // Gives where clients went on.
  offsets() {
    return this.steps("HEAD").map((step) => Number(step.got["upload-offset"]));
  }

  // Asks by hand, without the client.
  async ask(method, url, headers = {}, body) {
    headers = { "Tus-Resumable": "1.0.0", ...GOOD, ...headers };
    return fetch(url, { method, headers, body, redirect: "error", signal: AbortSignal.timeout(20_000) });
  }

  // Checks that the upload is whole, and gives what the server must hold.
  async end(upload, more = {}) {
    this.check();
    const whole = await this.ask("HEAD", upload.url);
    const told = `${this.name}: ${whole.status} ${JSON.stringify([...whole.headers])}`;
    assert([200, 204].includes(whole.status), told);
    for (const name of ["upload-offset", "upload-length"]) {
      assert.strictEqual(whole.headers.get(name), String(this.bytes.length), told);
    }
    assert.strictEqual(whole.headers.get("upload-metadata"), encoded, told);
    return this.told(upload.url, more);
  }

  told(url, more) {
    const sha256 = createHash("sha256").update(this.bytes).digest("hex");
    const created = this.log.filter((step) => step.method === "POST" && step.got.location);
    const upload_ids = created.map((step) => new URL(step.got.location, endpoint).pathname.split("/").pop());
    // Each step as `METHOD status`, for whoever wants to count them.
    const steps = this.log.map((step) => `${step.method} ${step.status}`);
    return { scenario: this.name, url, size: this.bytes.length, sha256, upload_ids, ...more, steps };
  }
}

const joins = (step) => step.sent["upload-concat"]?.startsWith("final;");

// A file in chunks.
async function plain(run) {
  const name = path.join(folder, `plain-${RUN}.bin`);
  fs.writeFileSync(name, run.bytes);
  const upload = await run.client({ chunkSize: MIB }, fs.createReadStream(name));
  assert.strictEqual(run.steps("PATCH").length, 4);
  return run.end(upload);
}

async function oneRequest(run) {
  const upload = await run.client();
  assert.strictEqual(run.steps("PATCH").length, 1);
  return run.end(upload);
}

// Stops in the middle of a request, in the first one and in the one that goes on, and goes on with new clients.
async function resume(run) {
  const stopped = await run.client({ stop: 1_000_003 });
  await run.resume({ stop: 2_222_222 });
  const upload = await run.resume();
  assert.strictEqual(upload.url, stopped.url);
  // The server has kept what came of each stopped request.
  const resumed_at = run.offsets();
  const [first, last] = [resumed_at[0], resumed_at.at(-1)];
  assert(0 < first && first < last && last < run.bytes.length, `resume: ${resumed_at}`);
  return run.end(upload, { resumed_at });
}

function checkParts(run, parts) {
  const created = run.steps("POST").filter((step) => !joins(step));
  for (const step of created) assert.strictEqual(step.sent["upload-concat"], "partial");
  assert.strictEqual(created.length, parts);
  const joined = run.steps("POST").filter(joins);
  assert.strictEqual(joined.length, 1);
  const urls = joined[0].sent["upload-concat"].slice("final;".length).split(" ");
  assert.deepStrictEqual(urls.toSorted(), created.map((step) => new URL(step.got.location, endpoint).href).sort());
}

async function endOfParts(run, upload, parts, more) {
  checkParts(run, parts);
  const whole = await run.ask("HEAD", upload.url);
  assert.match(whole.headers.get("upload-concat") ?? "", /^final;/);
  // What was joined takes no more bytes.
  const headers = { "Upload-Offset": String(run.bytes.length), "Content-Type": "application/offset+octet-stream" };
  assert.strictEqual((await run.ask("PATCH", upload.url, headers, Buffer.alloc(0))).status, 403);
  return run.end(upload, more);
}

// Three parts at once, which the server joins.
async function parallel(run) {
  const upload = await run.client({ parallelUploads: 3, chunkSize: MIB / 2 });
  return endOfParts(run, upload, 3);
}

// All parts are stopped in their middle.
async function parallelResume(run) {
  await run.client({ parallelUploads: 3, stop: 1_000_003 });
  const upload = await run.resume({ parallelUploads: 3 });
  const resumed_at = run.offsets();
  const within = (offset) => 0 < offset && offset < run.bytes.length / 3;
  assert(resumed_at.length >= 3 && resumed_at.some(within), `parallel-resume: ${resumed_at}`);
  return endOfParts(run, upload, 3, { resumed_at });
}

// The answer to what joins the parts is lost on its way. The next client asks for the parts, and then for the whole again.
async function parallelLost(run) {
  class LossyStack extends tus.DefaultHttpStack {
    createRequest(method, url) {
      const request = super.createRequest(method, url);
      const send = request.send.bind(request);
      request.send = async (body) => {
        const answer = await send(body);
        if (request.getHeader("Upload-Concat")?.startsWith("final;")) throw new Error("the network went away");
        return answer;
      };
      return request;
    }
  }
  const lost = await run.client({ parallelUploads: 3, httpStack: new LossyStack() }).then(() => null, (error) => error);
  assert.match(`${lost}`, /the network went away/);
  const upload = await run.resume({ parallelUploads: 3 });
  assert.strictEqual(run.offsets().length, 3, "parallel-lost: each part is asked for");
  assert.strictEqual(run.steps("PATCH").length, 3, "parallel-lost: no byte is sent twice");
  return endOfParts(run, upload, 3);
}

// A stream, of which the client does not know how long it is before its end.
async function stream(run, pieces) {
  const unknown = [];
  const onBeforeRequest = async (request) => {
    const asked = request.getMethod() === "PATCH" && request.getHeader("Upload-Length") === undefined;
    if (asked) unknown.push(await run.ask("HEAD", request.getURL()));
  };
  const input = Readable.from(pieces, { objectMode: false });
  const upload = await run.client({ uploadLengthDeferred: true, chunkSize: MIB, onBeforeRequest }, input);
  const [created] = run.steps("POST");
  assert.deepStrictEqual([created.sent["upload-defer-length"], created.sent["upload-length"]], ["1", undefined]);
  assert(unknown.length >= 3);
  for (const { headers } of unknown) {
    assert.deepStrictEqual([headers.get("upload-defer-length"), headers.get("upload-length")], ["1", null]);
  }
  const last = run.steps("PATCH").at(-1);
  assert.strictEqual(last.sent["upload-length"], String(run.bytes.length));
  return { told: await run.end(upload), last };
}

// The stream ends with its last bytes, and the length comes with them.
async function deferred(run) {
  const { told, last } = await stream(run, [run.bytes]);
  assert.strictEqual(last.sent["content-length"], run.bytes.length % MIB);
  return told;
}

// The stream ends after its last bytes, and the length comes alone: in a request of no bytes and without their number.
async function deferredLate(run) {
  const pieces = async function* () {
    yield* trickle(run.bytes);
    // By then the client waits for the last chunk.
    while (run.steps("PATCH").length < 3) await sleep(20);
    await sleep(100);
  };
  const { told, last } = await stream(run, pieces());
  assert.deepStrictEqual([last.sent["upload-offset"], last.sent["content-length"]], [`${run.bytes.length}`, undefined]);
  return told;
}

// The request that creates brings the first chunk.
async function creationWithUpload(run) {
  const upload = await run.client({ uploadDataDuringCreation: true, chunkSize: MIB });
  assert.strictEqual(run.steps("POST")[0].got["upload-offset"], String(MIB));
  assert.strictEqual(run.steps("PATCH").length, 3);
  return run.end(upload);
}

// The request that creates brings all.
async function onePost(run) {
  const upload = await run.client({ uploadDataDuringCreation: true });
  assert.strictEqual(run.steps("POST")[0].got["upload-offset"], String(run.bytes.length));
  assert.strictEqual(run.steps("PATCH").length, 0);
  return run.end(upload);
}

async function methodOverride(run) {
  const upload = await run.client({ overridePatchMethod: true, chunkSize: MIB });
  assert.deepStrictEqual(new Set(run.log.map((step) => step.verb)), new Set(["POST"]));
  assert.strictEqual(run.steps("PATCH").length, 4);
  return run.end(upload);
}

// What is thrown away part way is gone, for asking and for going on.
async function terminate(run) {
  const { url } = await run.client({ stop: 1_234_567, terminate: true });
  run.check();
  assert.strictEqual(run.log.filter((step) => step.method === "DELETE").at(-1).status, 204);
  const gone = (await run.ask("HEAD", url)).status;
  assert([404, 410].includes(gone), `terminate: HEAD is answered ${gone}`);
  const headers = { "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream" };
  assert.strictEqual((await run.ask("PATCH", url, headers, run.bytes.subarray(0, 1000))).status, gone);
  return run.told(url, { gone });
}

// A file of no bytes is whole as soon as it is created.
async function empty(run) {
  const upload = await run.client();
  assert.deepStrictEqual(run.log.map((step) => step.method), ["POST"]);
  return run.end(upload);
}

// The same with a body, which has a type and no bytes.
async function emptyPost(run) {
  const upload = await run.client({ uploadDataDuringCreation: true });
  assert.deepStrictEqual(run.log.map((step) => step.method), ["POST"]);
  return run.end(upload);
}

// A token is asked for when something is created, and not for what follows: the upload's address is the right.
async function expiredToken(run) {
  const refused = await run.client({ headers: GARBAGE }).then(() => null, (error) => error);
  const status = refused?.originalResponse?.getStatus();
  assert([401, 403].includes(status), `expired-token: garbage may create: ${status} ${refused}`);
  run.log = [];
  // The first client loses its token as soon as it has the address, and `this` are its options.
  const onUploadUrlAvailable = function () {
    this.headers = GARBAGE;
  };
  await run.client({ stop: MIB + 100_000, chunkSize: MIB, onUploadUrlAvailable });
  const upload = await run.resume({ headers: GARBAGE });
  const [created, ...others] = run.log;
  assert.deepStrictEqual([created.method, created.sent.authorization], ["POST", GOOD.Authorization]);
  for (const step of others) assert.strictEqual(step.sent.authorization, GARBAGE.Authorization);
  const resumed_at = run.offsets();
  assert(MIB <= resumed_at[0] && resumed_at[0] < run.bytes.length, `expired-token: ${resumed_at}`);
  return run.end(upload, { resumed_at });
}

const SCENARIOS = {
  plain,
  "one-request": oneRequest,
  resume,
  parallel,
  "parallel-resume": parallelResume,
  "parallel-lost": parallelLost,
  deferred,
  "deferred-late": deferredLate,
  "creation-with-upload": creationWithUpload,
  "one-post": onePost,
  "method-override": methodOverride,
  terminate,
  empty,
  "empty-post": emptyPost,
  "expired-token": expiredToken,
};

async function bounded(name) {
  const deadline = setTimeout(() => assert.fail(`${name}: an answer did not come in time`), 60_000);
  const told = await SCENARIOS[name](new Scenario(name, name.startsWith("empty") ? 0 : SIZE));
  clearTimeout(deadline);
  return told;
}

async function main() {
  const names = Object.keys(SCENARIOS);
  assert(wanted === "all" || names.includes(wanted), `the scenarios are all, ${names.join(", ")}`);
  assert(folder, "node tus.js URL TOKEN SCENARIO FOLDER");
  if (wanted !== "all") return console.log(JSON.stringify(await bounded(wanted)));
  const told = [];
  for (const name of names) told.push(await bounded(name));
  console.log(JSON.stringify(told));
}

main();
