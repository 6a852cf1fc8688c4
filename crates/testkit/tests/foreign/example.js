// Writes a ticket and reads it back, in MessagePack: node example.js ws://127.0.0.1:8000/ws/mobile/sync TOKEN
const { randomUUID } = require("node:crypto");
const { decode, encode } = require("@msgpack/msgpack");
const WebSocket = require("ws");

const [url, token] = process.argv.slice(2);
const sync_id = randomUUID();
const item = { op_id: randomUUID(), n: 1, kind: "ticket", id: randomUUID(), op: "create", fields: { title: "Roof leaks" } };

// What is sent after each answer; the first one comes unasked.
const steps = {
  connection_established: { type: "start_sync", sync_id, payload: { data_types: ["ticket"], total_items: 1 } },
  sync_session_started: { type: "sync_data", sync_id, payload: { batch: [item], batch_seq: 1 } },
  ack: { type: "request_server_data", sync_id, payload: { data_types: ["ticket"] } },
};

const socket = new WebSocket(`${url}?device_id=example`, ["driftline.v1.msgpack", `bearer.${token}`]);
socket.on("message", (frame) => {
  const message = decode(frame);
  console.log(message);
  if (message.type in steps) return socket.send(encode(steps[message.type]));
  const found = message.changes?.some((change) => change.id === item.id && change.fields.title === "Roof leaks");
  console.log(found ? "all answers are as documented" : "this was not expected");
  socket.close(1000);
});
