// Follows a socket with the package `ws` as it is: node follow.js URL TOKEN. It comes back with the last id that it has.
"use strict";

const WebSocket = require("ws");

const [url, token] = process.argv.slice(2);
const seen = new Set();
let last = null;

function connect() {
  const resume = last ? `&last_event_id=${last}` : "";
  const socket = new WebSocket(`${url}?token=${token}${resume}`);
  socket.on("message", (text) => {
    const event = JSON.parse(text);
    if (event.type === "connection_established") {
      if (!last) last = event.position;
      console.log("open");
    }
    if (!event.topic || seen.has(event.id)) return;
    seen.add(event.id);
    last = event.id;
    console.log(String(event.data.n));
    if (event.data.last) process.exit(0);
  });
  socket.on("error", () => {});
  socket.on("close", () => {
    console.log("cut");
    setTimeout(connect, 100);
  });
}

connect();
setTimeout(() => process.exit(3), 50000);
