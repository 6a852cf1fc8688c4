// A small client in all four forms, with nothing but `ws`, `@msgpack/msgpack` and node's `zlib`.
"use strict";

const assert = require("node:assert");
const { randomUUID } = require("node:crypto");
const zlib = require("node:zlib");
const { decode, encode } = require("@msgpack/msgpack");
const WebSocket = require("ws");

// One connection of a device, in one form. The token goes where `carrier` says.
class Phone {
  constructor({ url, token }, form, device, carrier = "header") {
    this.msgpack = form.includes("msgpack");
    this.deflate = form.endsWith("+deflate");
    // Whether the last message came compressed.
    this.packed = false;
    this.inbox = [];
    this.waiting = null;
    this.sync_id = randomUUID();
    const query = new URLSearchParams({ device_id: device });
    const headers = {};
    const protocols = [form];
    if (carrier === "query") query.set("token", token);
    if (carrier === "header") headers.authorization = `Bearer ${token}`;
    if (carrier === "subprotocol") protocols.push(`bearer.${token}`);
    // The library offers `permessage-deflate` by default; the server does not accept it and works without.
    this.socket = new WebSocket(`${url}?${query}`, protocols, { headers });
    this.socket.on("message", (frame, binary) => this.take(this.unpack(frame, binary)));
    this.closed = new Promise((resolve) => this.socket.on("close", resolve));
    this.closed.then((code) => this.take({ type: "closed", code }));
    this.pinged = new Promise((resolve) => this.socket.on("ping", resolve));
    this.socket.on("open", () => {
      assert.strictEqual(this.socket.protocol, form);
      assert.strictEqual(this.socket.extensions, "");
    });
  }

  encode(document) {
    return Buffer.from(this.msgpack ? encode(document) : JSON.stringify(document));
  }

  // Makes a frame: with `+deflate` one byte says whether the rest is compressed, which pays from 200 bytes on.
  pack(document) {
    const bytes = this.encode(document);
    if (!this.deflate) return bytes;
    const long = bytes.length >= 200;
    return Buffer.concat([Buffer.of(long ? 1 : 0), long ? zlib.deflateRawSync(bytes) : bytes]);
  }

  unpack(frame, binary) {
    assert.strictEqual(binary, this.msgpack || this.deflate);
    if (this.deflate) {
      assert(frame[0] === 0 || frame[0] === 1, `the first byte is ${frame[0]}`);
      this.packed = frame[0] === 1;
      frame = this.packed ? zlib.inflateRawSync(frame.subarray(1)) : frame.subarray(1);
      assert(!this.packed || frame.length >= 200);
    }
    return this.msgpack ? decode(frame) : JSON.parse(frame);
  }

  take(message) {
    if (this.waiting) this.waiting(message);
    else this.inbox.push(message);
    this.waiting = null;
  }

  next() {
    if (this.inbox.length) return this.inbox.shift();
    return new Promise((resolve) => (this.waiting = resolve));
  }

  // Returns the next message of a type; live deltas may come between.
  async receive(wanted) {
    for (;;) {
      const message = await this.next();
      if (message.type === wanted) return message;
      assert.strictEqual(message.type, "server_delta", `wanted ${wanted}: ${JSON.stringify(message)}`);
    }
  }

  // Sends a frame as it is: text in the one form that has text.
  raw(bytes, options = {}) {
    this.socket.send(bytes, { binary: this.msgpack || this.deflate, ...options });
  }

  async ask(message, wanted) {
    const id = `m-${randomUUID().slice(0, 6)}`;
    this.raw(this.pack({ ...message, id }));
    const answer = await this.receive(wanted);
    assert.strictEqual(answer.reply_to, id);
    return answer;
  }

  async start() {
    const hello = await this.receive("connection_established");
    assert.match(hello.epoch, /^[0-9a-f]{8}$/);
    const payload = { data_types: ["ticket"], total_items: 2, epoch: hello.epoch };
    const started = await this.ask({ type: "start_sync", sync_id: this.sync_id, payload }, "sync_session_started");
    assert.strictEqual(started.session_info.sync_id, this.sync_id);
    return this;
  }

  async pull() {
    const payload = { data_types: ["ticket"] };
    const page = await this.ask({ type: "request_server_data", sync_id: this.sync_id, payload }, "server_data");
    assert.strictEqual(page.has_more, false);
    return page.changes;
  }

  async close() {
    this.socket.close(1000, "done");
    assert.strictEqual(await this.closed, 1000);
  }
}

module.exports = { Phone };
