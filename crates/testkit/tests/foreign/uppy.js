// The script of `uppy.html`: uploads with Uppy to `?endpoint=http://…/files&token=…`, and reports what it saw to
// `/report` of the page's own origin. Whoever serves the page has `uppy.min.mjs` of npm's `uppy` beside it.
import { Tus, Uppy } from "./uppy.min.mjs";

const given = new URLSearchParams(location.search);
const [endpoint, token] = [given.get("endpoint"), given.get("token")];
const MIB = 1 << 20;
// The last chunk is to be shorter.
const SIZE = 3 * MIB + 12_345;

// Makes bytes that look like chance, always the same from the same seed.
async function bytesOf(seed, size) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(seed));
  const key = await crypto.subtle.importKey("raw", digest.slice(0, 16), "AES-CTR", false, ["encrypt"]);
  const way = { name: "AES-CTR", counter: new Uint8Array(16), length: 64 };
  return crypto.subtle.encrypt(way, key, new Uint8Array(size));
}

const hex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");

// One file with an Uppy of its own. Every answer is noted with what the page may read of it.
class Case {
  constructor(seed, options = {}) {
    this.seed = seed;
    this.seen = { steps: [] };
    this.uppy = new Uppy({ id: seed });
    this.uppy.use(Tus, {
      endpoint,
      headers: { Authorization: `Bearer ${token}` },
      chunkSize: MIB,
      onAfterResponse: (request, response) => this.note(request, response),
      ...options,
    });
  }

  note(request, response) {
    const step = { method: request.getMethod(), url: request.getURL(), status: response.getStatus() };
    for (const name of ["Location", "Upload-Offset", "Upload-Length"]) {
      const value = response.getHeader(name);
      if (value !== null) step[name.toLowerCase()] = value;
    }
    this.seen.steps.push(step);
    this.noted?.(step);
  }

  async upload() {
    const bytes = await bytesOf(this.seed, SIZE);
    const data = new Blob([bytes], { type: "application/x-driftline" });
    Object.assign(this.seen, { size: SIZE, sha256: hex(await crypto.subtle.digest("SHA-256", bytes)) });
    this.uppy.addFile({ name: "Straße 日本.bin", type: data.type, data });
    return this.uppy.upload();
  }
}

// Pauses after the first chunk and goes on, for which Uppy asks where the server is.
async function paused() {
  let paused = false;
  const onChunkComplete = () => {
    if (paused) return;
    paused = true;
    one.uppy.pauseAll();
    setTimeout(() => one.uppy.resumeAll(), 100);
  };
  const one = new Case("paused", { onChunkComplete });
  const { successful, failed } = await one.upload();
  return { ...one.seen, url: successful[0]?.uploadURL, error: failed[0]?.error };
}

// Is thrown away after the first chunk.
async function cancelled() {
  const one = new Case("cancelled", { onChunkComplete: () => one.uppy.cancelAll() });
  const deleted = new Promise((resolve) => (one.noted = (step) => step.method === "DELETE" && resolve(step.url)));
  one.upload();
  const url = await deleted;
  const { status } = await fetch(url, { method: "HEAD", headers: { "Tus-Resumable": "1.0.0" } });
  return { ...one.seen, url, gone: status };
}

// The page can read why it may not create.
async function refused() {
  const one = new Case("refused", { headers: { Authorization: "Bearer garbage" }, retryDelays: null });
  const response = new Promise((resolve) => one.uppy.on("upload-error", (file, error, response) => resolve(response)));
  const { failed } = await one.upload();
  return { ...one.seen, error: failed[0]?.error, status: (await response)?.status };
}

async function run(act) {
  const late = new Promise((_, reject) => setTimeout(reject, 20_000, new Error("no end in time")));
  return Promise.race([act(), late]).catch((error) => ({ failed: String(error) }));
}

const report = { paused: await run(paused), cancelled: await run(cancelled), refused: await run(refused) };
await fetch("/report", { method: "POST", body: JSON.stringify(report) });
