// Sends requests with bodies that the server rejects, over keep-alive connections, and counts the
// lost rejections: one row for each path, size and transfer encoding.
//
//   node rejections.mjs http://127.0.0.1:1234
import http from "node:http";

const REQUESTS = 100;

function one(agent, url, size, chunked) {
  return new Promise((resolve) => {
    const headers = chunked ? {} : { "content-length": size };
    const request = http.request(url, { method: "POST", agent, headers }, (response) => {
      response.on("error", resolve);
      response.on("end", () => {
        const { statusCode } = response;
        resolve(statusCode === 401 ? undefined : new Error(`unexpected status: ${statusCode}`));
      });
      response.resume();
    });
    request.on("error", resolve);
    const body = Buffer.alloc(size);
    for (let at = 0; at < size; at += 16 * 1024) {
      request.write(body.subarray(at, at + 16 * 1024));
    }
    request.end();
  });
}

const base = process.argv[2];
if (!base) {
  console.error("missing argument: the server's base URL; run interop/rejections.sh");
  process.exit(2);
}
let failed = false;
for (const path of ["/layer", "/extractor"]) {
  for (const size of [1, 8 * 1024, 60_000, 64 * 1024]) {
    for (const chunked of [false, true]) {
      const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
      const errors = [];
      for (let n = 0; n < REQUESTS; n++) {
        const error = await one(agent, base + path, size, chunked);
        if (error) errors.push(error);
      }
      agent.destroy();
      const row = `e11-node-${path.slice(1)}-${size}${chunked ? "-chunked" : ""}`;
      if (errors.length === 0) {
        console.log(`ok ${row} 0 of ${REQUESTS} rejections lost`);
      } else {
        const lost = `${errors.length} of ${REQUESTS} rejections lost`;
        console.log(`FAIL ${row} ${lost}: ${errors[0].message}`);
        failed = true;
      }
    }
  }
}
process.exit(failed ? 1 : 0);
