// grpc-web, the client for browsers, on an XMLHttpRequest for Node.
import { createRequire } from "node:module";
import { AUDIENCE, DOMAIN, OPS, PATIENCE, WEB } from "./harness.mjs";
import { equal, readCases, row, until } from "./harness.mjs";

const require = createRequire(import.meta.url);
globalThis.XMLHttpRequest = require("xhr2");
const grpcWeb = require("grpc-web");

const codes = Object.fromEntries(Object.entries(grpcWeb.StatusCode).map(([name, number]) => [number, name]));

// Encodes a google.protobuf.StringValue of fewer than 128 bytes: field 1.
const encode = (text) => Uint8Array.from([10, text.length, ...Buffer.from(text)]);
const decode = (bytes) => Buffer.from(bytes).subarray(2).toString();
const descriptor = (method, type) =>
  new grpcWeb.MethodDescriptor(`/interop.Interop/${method}`, type, String, String, encode, decode);

const metadata = (authorization) => {
  const deadline = String(Date.now() + PATIENCE);
  return authorization === undefined ? { deadline } : { deadline, authorization };
};

const call = (client, url, method, authorization) =>
  new Promise((resolve) => {
    const unary = descriptor(method, grpcWeb.MethodType.UNARY);
    client.rpcCall(`${url}/interop.Interop/${method}`, "hello", metadata(authorization), unary, (error, answer) =>
      resolve(error ? codes[error.code] : answer),
    );
  });

const stream = (client, url, method, authorization) =>
  new Promise((resolve) => {
    const streaming = descriptor(method, grpcWeb.MethodType.SERVER_STREAMING);
    const texts = [];
    const messages = client.serverStreaming(`${url}/interop.Interop/${method}`, "hello", metadata(authorization), streaming);
    messages.on("data", (text) => texts.push(text));
    messages.on("error", (error) => resolve([...texts, codes[error.code]]));
    messages.on("end", () => resolve([...texts, "OK"]));
  });

export async function run(driver) {
  await driver.do("agent", { agent: "web", trust_domain: DOMAIN });
  await driver.allAlgorithms("web");
  const { address } = await driver.do("serve", { agent: "web", kind: "grpc", audience: AUDIENCE });
  const url = `http://${address}`;
  const clients = [
    ["text", new grpcWeb.GrpcWebClientBase({ format: "text" })],
    ["binary", new grpcWeb.GrpcWebClientBase({ format: "binary" })],
  ];
  for (const entry of readCases()) {
    const bearer = `Bearer ${await driver.token("web", entry.spec)}`;
    const want = entry.rejected === undefined ? `hello ${entry.spec.claims?.sub ?? WEB}` : "UNAUTHENTICATED";
    for (const [format, client] of clients) {
      await row(`node-web-${format}-${entry.case}`, "tonic's response to grpc-web", async () =>
        equal("answer", await call(client, url, "Who", bearer), want));
    }
  }
  const good = `Bearer ${await driver.token("web")}`;
  const ops = `Bearer ${await driver.token("web", {}, OPS)}`;
  const calls = [
    ["none", "Who", undefined, "UNAUTHENTICATED"],
    ["basic", "Who", "Basic dXNlcjpwYXNz", "UNAUTHENTICATED"],
    ["scheme-alone", "Who", "Bearer", "UNAUTHENTICATED"],
    ["word-after-token", "Who", `${good} x`, "UNAUTHENTICATED"],
    ["policy-denies", "Ops", good, "PERMISSION_DENIED"],
    ["policy-allows", "Ops", ops, `hello ${OPS}`],
    ["unlisted", "Unlisted", good, "PERMISSION_DENIED"],
    ["unlisted-anonymous", "Unlisted", undefined, "UNAUTHENTICATED"],
    ["public-method", "Version", undefined, "1"],
  ];
  for (const [format, client] of clients) {
    for (const [what, method, authorization, want] of calls) {
      await row(`node-web-${format}-${what}`, "tonic's response to grpc-web", async () =>
        equal("answer", await call(client, url, method, authorization), want));
    }
    await row(`node-web-${format}-stream-rejected`, "a rejected stream is Unauthenticated", async () =>
      equal("messages", await stream(client, url, "List", "Bearer x.y.z"), ["UNAUTHENTICATED"]));
  }
  // In binary form the client returns no message before the end of the stream.
  const [[, text]] = clients;
  await row("node-web-text-stream", "a tonic stream arrives completely", async () =>
    equal("messages", await stream(text, url, "List", good), ["first", "second", WEB, "OK"]));
  const short = `Bearer ${await driver.token("web", { exp_in: -8, iat_in: -60 })}`;
  await row("node-web-text-stream-expires", "a stream ends with its token", async () =>
    equal("messages", await stream(text, url, "Wait", short), ["first", "UNAUTHENTICATED"]));
  await driver.change("web", "withdraw");
  for (const [format, client] of clients) {
    await row(`node-web-${format}-withdrawn`, "without usable bundles the code is Unavailable", () =>
      until(async () => equal("answer", await call(client, url, "Who", good), "UNAVAILABLE")));
  }
}
