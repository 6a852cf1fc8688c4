// Follows a stream with the package `eventsource` as it is, through every cut, until an event with `last: true` comes:
// node stream.js URL TOKEN. Prints "open" once it hears, then the number of each event, "cut" for each cut.
"use strict";

const { EventSource } = require("eventsource");

const [url, token] = process.argv.slice(2);
const seen = new Set();
const source = new EventSource(url, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } }),
});
source.onerror = () => console.log("cut");
source.onmessage = (message) => {
  const event = JSON.parse(message.data);
  if (event.type === "connection_established") {
    console.log(`open ${event.recovered}`);
    return;
  }
  // The browser's own resumption goes by the same name.
  if (message.lastEventId !== event.id) throw new Error(`${message.lastEventId} is not ${event.id}`);
  if (seen.has(event.id)) return;
  seen.add(event.id);
  console.log(String(event.data.n));
  if (event.data.last) process.exit(0);
};
setTimeout(() => process.exit(3), 50000);
