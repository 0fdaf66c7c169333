// connect-node: a client of our servers with three protocols, a gRPC client of the embedded agent, and a
// server for our clients.
import * as http from "node:http";
import * as http2 from "node:http2";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import {
  connectNodeAdapter,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";
import * as jose from "jose";
import { AUDIENCE, DOMAIN, OPS, PATIENCE, WEB } from "./harness.mjs";
import { equal, readCases, row, until } from "./harness.mjs";
import { Interop, WorkloadApi } from "./descriptors.mjs";

const headers = (values) => {
  const all = new Headers();
  for (const value of values) all.append("authorization", value);
  return all;
};

const code = (error) => Code[ConnectError.from(error).code];

/** Returns the text of the response, or the code. */
async function call(client, method, values) {
  try {
    const answer = await client[method]({ value: "hello" }, { headers: headers(values), timeoutMs: PATIENCE });
    return answer.value;
  } catch (error) {
    return code(error);
  }
}

/** Returns the texts of a stream, and its code at the end. */
async function stream(client, method, values) {
  const texts = [];
  try {
    const messages = client[method]({ value: "hello" }, { headers: headers(values), timeoutMs: PATIENCE });
    for await (const { value } of messages) texts.push(value);
    return [...texts, "OK"];
  } catch (error) {
    return [...texts, code(error)];
  }
}

export async function run(driver) {
  await servers(driver);
  for (const transport of ["unix", "tcp"]) await agent(driver, transport);
  await ourClients(driver);
}

async function servers(driver) {
  await driver.do("agent", { agent: "connect", trust_domain: DOMAIN });
  await driver.do("federate", { agent: "connect", trust_domain: "example.net" });
  await driver.allAlgorithms("connect");
  const serve = async (kind) =>
    `http://${(await driver.do("serve", { agent: "connect", kind, audience: AUDIENCE })).address}`;
  const axum = await serve("http");
  const tonic = await serve("grpc");
  // No streams in the Connect protocol: the server of the driver supports only unary calls there.
  const protocols = [
    ["connect", createConnectTransport({ baseUrl: axum, httpVersion: "1.1", useBinaryFormat: false }), false],
    ["connect-h2", createConnectTransport({ baseUrl: axum, httpVersion: "2", useBinaryFormat: false }), false],
    ["connect-grpc", createGrpcTransport({ baseUrl: tonic }), true],
    ["connect-web", createGrpcWebTransport({ baseUrl: tonic, httpVersion: "1.1" }), true],
    ["connect-web-h2", createGrpcWebTransport({ baseUrl: tonic, httpVersion: "2" }), true],
  ];
  const clients = protocols.map(([name, transport, grpc]) => [name, createClient(Interop, transport), grpc]);
  for (const entry of readCases()) {
    const bearer = `Bearer ${await driver.token("connect", entry.spec)}`;
    const want = entry.rejected === undefined ? `hello ${entry.spec.claims?.sub ?? WEB}` : "Unauthenticated";
    for (const [name, client] of clients) {
      await row(`node-${name}-${entry.case}`, "our server's response to connect", async () =>
        equal("answer", await call(client, "who", [bearer]), want));
    }
  }
  const good = `Bearer ${await driver.token("connect")}`;
  const ops = `Bearer ${await driver.token("connect", {}, OPS)}`;
  const foreign = `Bearer ${await driver.token("example.net", {}, "spiffe://example.net/web")}`;
  const short = `Bearer ${await driver.token("connect", { exp_in: -8, iat_in: -60 })}`;
  for (const [name, client, grpc] of clients) {
    // 400 is Internal in the Connect protocol.
    const malformed = grpc ? "Unauthenticated" : "Internal";
    const calls = [
      ["none", "who", [], "Unauthenticated"],
      ["basic", "who", ["Basic dXNlcjpwYXNz"], "Unauthenticated"],
      ["scheme-alone", "who", ["Bearer"], malformed],
      ["word-after-token", "who", [`${good} x`], malformed],
      ["policy-denies", "ops", [good], "PermissionDenied"],
      ["policy-allows", "ops", [ops], `hello ${OPS}`],
      ["foreign-domain", "who", [foreign], "PermissionDenied"],
      ["unlisted-anonymous", "unlisted", [], "Unauthenticated"],
    ];
    if (grpc) {
      calls.push(["unlisted", "unlisted", [good], "PermissionDenied"]);
      calls.push(["public-method", "version", [], "1"]);
    }
    for (const [what, method, values, want] of calls) {
      await row(`node-${name}-${what}`, "our server's response to connect", async () =>
        equal("answer", await call(client, method, values), want));
    }
    if (!grpc) continue;
    await row(`node-${name}-stream`, "a tonic stream arrives completely", async () =>
      equal("messages", await stream(client, "list", [good]), ["first", "second", WEB, "OK"]));
    await row(`node-${name}-stream-rejected`, "a rejected stream is Unauthenticated", async () =>
      equal("messages", await stream(client, "list", ["Bearer x.y.z"]), ["Unauthenticated"]));
  }
  // The leeway is 10 s: 8 s past the expiry leaves 1 to 2 s, so all of them run at once.
  const ends = clients.filter(([, , grpc]) => grpc).map(([name, client]) =>
    row(`node-${name}-stream-expires`, "a stream ends with its token", async () =>
      equal("messages", await stream(client, "wait", [short]), ["first", "Unauthenticated"])));
  await Promise.all(ends);
  await driver.change("connect", "withdraw");
  for (const [name, client] of clients) {
    await row(`node-${name}-withdrawn`, "without usable bundles the code is Unavailable", () =>
      until(async () => equal("answer", await call(client, "who", [good]), "Unavailable")));
  }
  await driver.change("connect", "restore");
  for (const [name, client] of clients) {
    await row(`node-${name}-restored`, "after a restoration callers are accepted again", () =>
      until(async () => equal("answer", await call(client, "who", [good]), `hello ${WEB}`)));
  }
}

/** connect's gRPC client with the embedded agent. */
async function agent(driver, transport) {
  const name = `connect-agent-${transport}`;
  const { endpoint } = await driver.do("agent", { agent: name, trust_domain: DOMAIN, transport });
  const options =
    transport === "unix"
      ? { baseUrl: "http://localhost", nodeOptions: { path: endpoint.replace(/^unix:(\/\/)?/, "") } }
      : { baseUrl: endpoint.replace("tcp:", "http:") };
  const client = createClient(WorkloadApi, createGrpcTransport(options));
  const security = { headers: { "workload.spiffe.io": "true" }, timeoutMs: PATIENCE };
  const rowName = (what) => `node-${name}-${what}`;
  const result = async (request, options = security) => {
    try {
      await client.fetchJWTSVID(request, options);
      return "OK";
    } catch (error) {
      return code(error);
    }
  };
  await row(rowName("fetch"), "FetchJWTSVID returns a token that jose verifies", async () => {
    const { svids } = await client.fetchJWTSVID({ audience: [AUDIENCE] }, security);
    const { jwks } = await driver.do("keys", { issuer: name });
    const keys = jose.createLocalJWKSet(JSON.parse(jwks));
    const { payload } = await jose.jwtVerify(svids[0].svid, keys, { audience: AUDIENCE });
    equal("ID", payload.sub, svids[0].spiffeId);
  });
  const rejections = [
    ["no-header", { audience: [AUDIENCE] }, {}, "InvalidArgument"],
    ["no-audience", {}, security, "InvalidArgument"],
    ["unregistered", { audience: [AUDIENCE], spiffeId: "spiffe://example.org/unknown" }, security, "PermissionDenied"],
  ];
  for (const [what, request, options, want] of rejections) {
    await row(rowName(what), "the status is SPIRE's", async () => equal("code", await result(request, options), want));
  }
  await row(rowName("stream"), "a stream shows a rotation and ends with a withdrawal", async () => {
    const messages = client.fetchJWTBundles({}, security)[Symbol.asyncIterator]();
    const next = async () => {
      const { value } = await messages.next();
      return Buffer.from(value.bundles["spiffe://example.org"]).toString();
    };
    const first = await next();
    const { kid } = await driver.change(name, "rotate");
    equal("the new key is only in the second message", [first, await next()].map((text) => text.includes(kid)), [
      false,
      true,
    ]);
    await driver.change(name, "withdraw");
    equal("end", await messages.next().catch(code), "PermissionDenied");
  });
  await row(rowName("restart"), "the watch follows a restarted agent", async () => {
    await driver.change(name, "restore");
    await driver.change(name, "restart");
    await until(async () => equal("code", await result({ audience: [AUDIENCE] }), "OK"));
  });
}

/** Our reqwest and tonic clients with connect's server, which verifies tokens with jose. */
async function ourClients(driver) {
  const { endpoint } = await driver.do("agent", { agent: "connect-clients", trust_domain: DOMAIN });
  await driver.change("connect-clients", "register", { id: WEB });
  await driver.do("source", { source: "connect-clients", endpoint });
  const { jwks } = await driver.do("keys", { issuer: "connect-clients" });
  const keys = jose.createLocalJWKSet(JSON.parse(jwks));
  const who = async ({ value }, { requestHeader }) => {
    const token = requestHeader.get("authorization")?.replace("Bearer ", "") ?? "";
    const verified = await jose.jwtVerify(token, keys, { audience: AUDIENCE }).catch((error) => {
      throw new ConnectError(String(error), Code.Unauthenticated);
    });
    return { value: `${value} ${verified.payload.sub}` };
  };
  const adapter = connectNodeAdapter({ routes: (router) => router.service(Interop, { who }) });
  const listening = (server) =>
    new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(`http://127.0.0.1:${server.address().port}`)));
  const plain = http.createServer(adapter);
  const h2 = http2.createServer(adapter);
  const [url, target] = [await listening(plain), await listening(h2)];
  const ours = (url, audience, more = {}) =>
    driver.do("call", { source: "connect-clients", url, audience, ...more });
  const query = "/interop.Interop/Who?connect=v1&encoding=json&message=%22hello%22";
  await row("node-client-connect", "our reqwest client is accepted by connect", async () =>
    equal("answer", await ours(url + query, AUDIENCE), { status: 200, body: JSON.stringify(`hello ${WEB}`) }));
  await row("node-client-connect-h2", "our reqwest client is accepted by connect over HTTP/2", async () =>
    equal("status", (await ours(target + query, AUDIENCE, { http: "2" })).status, 200));
  await row("node-client-connect-other-audience", "our token for another audience is rejected by connect", async () =>
    equal("status", (await ours(url + query, "other")).status, 401));
  const method = "/interop.Interop/Who";
  await row("node-client-connect-grpc", "our tonic client is accepted by connect", async () =>
    equal("answer", await ours(target, AUDIENCE, { method }), { code: 0, body: `hello ${WEB}` }));
  await row("node-client-connect-grpc-other-audience", "our token for another audience is rejected by connect", async () =>
    equal("code", (await ours(target, "other", { method })).code, Code.Unauthenticated));
  plain.close();
  h2.close();
}
