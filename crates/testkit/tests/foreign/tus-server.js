// Another server of the tus protocol, `@tus/server` with `@tus/file-store`, to try clients against and to compare with.
//
//     node tus-server.js FOLDER [TOKEN]
//
// Prints `listening on http://127.0.0.1:PORT/files` and ends on SIGTERM. With a token, only who has it may create; what
// was created may be used without.
"use strict";

const http = require("node:http");

const [folder, token] = process.argv.slice(2);

// These packages are modules, which `import` finds beside the script only, and `require` where NODE_PATH says.
const load = (name) => import(require.resolve(name));

async function main() {
  const [{ Server }, { FileStore }] = [await load("@tus/server"), await load("@tus/file-store")];
  const onIncomingRequest = async (request) => {
    const may = request.method !== "POST" || request.headers.get("authorization") === `Bearer ${token}`;
    if (token && !may) throw { status_code: 401, body: "a token is needed\n" };
  };
  const datastore = new FileStore({ directory: folder, expirationPeriodInMilliseconds: 24 * 3600 * 1000 });
  const tus = new Server({ path: "/files", datastore, onIncomingRequest });
  const server = http.createServer((request, response) => {
    // This is left to whom the packages serve.
    request.method = request.headers["x-http-method-override"] ?? request.method;
    tus.handle(request, response);
  });
  server.listen(0, "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${server.address().port}/files`));
  process.once("SIGTERM", () => {
    server.close();
    server.closeAllConnections();
  });
}

main();
