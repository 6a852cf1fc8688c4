// Speaks every form of the protocol with nothing but `ws`, `@msgpack/msgpack` and node's `zlib`.
//
//     node forms.js ws://127.0.0.1:8000/ws/mobile/sync TOKEN
//
// The token must not name a device. The script ends with an error at the first answer that is not as documented. It
// waits until the server takes a silent client for dead: `heartbeat_s = 3` in its configuration spares time.
"use strict";

const assert = require("node:assert");
const { randomUUID } = require("node:crypto");
const { encode } = require("@msgpack/msgpack");
const { Phone } = require("./phone.js");

const [url, token] = process.argv.slice(2);
const RUN = randomUUID().slice(0, 8);
const FORMS = ["json", "msgpack", "json+deflate", "msgpack+deflate"].map((form) => `driftline.v1.${form}`);

const connect = (form, device, carrier) => new Phone({ url, token }, form, `${device}-${RUN}`, carrier);

const FIELDS = {
  text: "Dach undicht – 雨 🌧",
  long: "the roof leaks again; ".repeat(40),
  yes: true,
  none: null,
  small: -7,
  big: 2 ** 53 - 1,
  half: 0.5,
  far: 1e300,
  list: [1, "two", [3.25, null], { four: 4 }],
};

async function sync(form) {
  for (const carrier of ["query", "header", "subprotocol"]) {
    const phone = await connect(form, "carrier", carrier).start();
    await phone.close();
  }
  const phone = await connect(form, `ada-${FORMS.indexOf(form)}`).start();
  const record = `${form}-${RUN}`.replaceAll(/[^a-z0-9-]/g, "-");
  const item = (n, fields) =>
    ({ op_id: randomUUID(), n, kind: "ticket", id: `${record}-${n}`, op: "create", fields });
  const payload = { batch: [item(1, FIELDS), item(2, { text: "short" })], batch_seq: 1 };
  const ack = await phone.ask({ type: "sync_data", sync_id: phone.sync_id, payload }, "ack");
  assert.deepStrictEqual([ack.of, ack.status, ack.synced], ["sync_data", "ok", 2]);
  const stored = (await phone.pull()).find((change) => change.id === `${record}-1`);
  assert.deepStrictEqual(stored.fields, FIELDS);
  assert.strictEqual(phone.packed, phone.deflate);
  const pong = await phone.ask({ type: "ping", timestamp: 123 }, "pong");
  assert.strictEqual(pong.timestamp, 123);
  return phone;
}

async function mistakes(phone) {
  const unknown = await phone.ask({ type: "make_coffee" }, "error");
  assert.deepStrictEqual([unknown.code, unknown.retryable], ["UNKNOWN_MESSAGE_TYPE", false]);
  const nonsense = phone.msgpack ? Buffer.of(0xc1) : Buffer.from("{");
  phone.raw(phone.deflate ? Buffer.concat([Buffer.of(0), nonsense]) : nonsense);
  const error = await phone.receive("error");
  assert.strictEqual(error.code, phone.msgpack ? "MSGPACK_DECODE_ERROR" : "JSON_DECODE_ERROR");
  // A message in three fragments is one message.
  const frame = phone.pack({ type: "ping", timestamp: 456 });
  phone.raw(frame.subarray(0, 1), { fin: false });
  phone.raw(frame.subarray(1, 9), { fin: false });
  phone.raw(frame.subarray(9));
  assert.strictEqual((await phone.receive("pong")).timestamp, 456);
  if (!phone.deflate) {
    // The frame says in which encoding it comes, and the subprotocol in which the answer goes.
    const ping = { type: "ping", timestamp: 789 };
    if (phone.msgpack) phone.socket.send(JSON.stringify(ping));
    else phone.socket.send(encode(ping));
    assert.strictEqual((await phone.receive("pong")).timestamp, 789);
  }
}

async function ends(form, phone) {
  // The same device again: the newest connection wins.
  const second = await connect(form, `ada-${FORMS.indexOf(form)}`).start();
  assert.strictEqual((await phone.receive("error")).code, "REPLACED");
  assert.strictEqual(await phone.closed, 4510);
  await second.close();
  if (!form.endsWith("+deflate")) return;
  const bad = async (frame, binary) => {
    const other = await connect(form, "eve").start();
    other.socket.send(frame, { binary });
    return other.closed;
  };
  assert.strictEqual(await bad('{"type":"ping"}', false), 1003);
  assert.strictEqual(await bad(Buffer.of(2, 0x7b, 0x7d), true), 1007);
}

// The library answers the server's pings by itself, which does not prove that the app lives: the silent one must go.
async function silence() {
  const phone = connect(FORMS[0], "quiet");
  const hello = await phone.receive("connection_established");
  assert.strictEqual(hello.heartbeat_timeout_s, 2 * hello.heartbeat_interval_s);
  await phone.pinged;
  assert.strictEqual((await phone.receive("error")).code, "HEARTBEAT_TIMEOUT");
  assert.strictEqual(await phone.closed, 4009);
}

async function main() {
  for (const form of FORMS) {
    const phone = await sync(form);
    await mistakes(phone);
    await ends(form, phone);
  }
  // The same document comes in every form.
  const seen = [];
  for (const form of FORMS) {
    const phone = await connect(form, "reader").start();
    seen.push(await phone.pull());
    await phone.close();
  }
  assert(seen[0].length >= 2 * FORMS.length);
  for (const changes of seen) assert.deepStrictEqual(changes, seen[0]);
  await silence();
  console.log("forms.js: all answers are as documented");
}

const deadline = setTimeout(() => assert.fail("an answer did not come in time"), 60_000);
main().then(() => clearTimeout(deadline));
