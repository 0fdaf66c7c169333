// Runs tower-spiffe against jose, grpc-js, fetch, connect and grpc-web.
//
// Prints one line per row: `ok|FAIL <row> <what>`. INTEROP_DRIVER, INTEROP_CASES and INTEROP_PROTO are
// the paths of the driver, the table of tokens and the definition of the Workload API.
import * as grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import * as jose from "jose";
import * as connect from "./connect.mjs";
import * as grpcWeb from "./grpc-web.mjs";
import * as harness from "./harness.mjs";
import { ALGORITHMS, AUDIENCE, DOMAIN, Driver, OPS, PATIENCE, WEB } from "./harness.mjs";
import { acceptedBy, equal, readCases, rejects, row, until } from "./harness.mjs";

const plaintext = grpc.credentials.createInsecure();

/** Our tokens, verified by jose. */
async function ourTokens(driver) {
  await driver.do("issuer", { issuer: "tokens", trust_domain: DOMAIN });
  await driver.allAlgorithms("tokens");
  const { jwks } = await driver.do("keys", { issuer: "tokens" });
  const keys = jose.createLocalJWKSet(JSON.parse(jwks));
  const options = { audience: AUDIENCE, algorithms: ALGORITHMS, clockTolerance: 10, requiredClaims: ["exp", "sub"] };
  for (const entry of readCases()) {
    const token = await driver.token("tokens", entry.spec);
    await row(`node-jose-${entry.case}`, "jose's result on our token", async () => {
      const verify = () => jose.jwtVerify(token, keys, options);
      if (!acceptedBy("jose", entry)) return rejects(verify);
      equal("ID", (await verify()).payload.sub, entry.spec.claims?.sub ?? WEB);
    });
  }
}

/** jose's tokens, verified by our validator. */
async function theirTokens(driver) {
  const now = Math.floor(Date.now() / 1000);
  const pairs = {};
  const all = [];
  for (const algorithm of ALGORITHMS) {
    pairs[algorithm] = await jose.generateKeyPair(algorithm, { extractable: true });
    const kid = `kid-${algorithm}`;
    all.push({ ...(await jose.exportJWK(pairs[algorithm].publicKey)), kid, alg: algorithm, use: "jwt-svid" });
  }
  const jwks = JSON.stringify({ keys: all });
  const sign = (algorithm, claims = {}, header = {}, key = pairs[algorithm].privateKey) =>
    new jose.SignJWT({ sub: WEB, aud: [AUDIENCE], iat: now, exp: now + 300, ...claims })
      .setProtectedHeader({ alg: algorithm, kid: `kid-${algorithm}`, typ: "JWT", ...header })
      .sign(key);
  const validate = (token, keys) =>
    driver.do("validate", { trust_domain: DOMAIN, audience: AUDIENCE, token, ...keys });
  for (const algorithm of ALGORITHMS) {
    for (const form of ["jwks", "spiffe_bundle"]) {
      await row(`node-signed-${form}-${algorithm}`, "our validator accepts jose's token with jose's JWK", async () => {
        equal("ID", (await validate(await sign(algorithm), { [form]: jwks })).id, WEB);
      });
    }
  }
  const other = await jose.generateKeyPair("ES256");
  const secret = new TextEncoder().encode(jwks);
  const hostile = [
    ["expired", sign("ES256", { exp: now - 60 }), "expired"],
    ["not-yet-valid", sign("ES256", { nbf: now + 60 }), "not-yet-valid"],
    ["other-audience", sign("ES256", { aud: "other" }), "audience"],
    ["forged", sign("ES256", {}, {}, other.privateKey), "signature"],
    ["unknown-key", sign("ES256", {}, { kid: "unknown" }), "key-unknown"],
    ["key-of-another-curve", sign("ES256", {}, { kid: "kid-ES384" }), "key-unfit"],
    ["HS256-by-jwks", sign("HS256", {}, { kid: "kid-ES256" }, secret), "algorithm"],
    ["typ-access-token", sign("ES256", {}, { typ: "at+jwt" }), "header"],
  ];
  for (const [name, token, reason] of hostile) {
    await row(`node-hostile-${name}`, "our validator rejects jose's token", async () => {
      equal("reason", (await validate(await token, { jwks })).rejected, reason);
    });
  }
}

/** fetch and grpc-js as clients of axum and tonic servers with the layer. */
async function servers(driver) {
  await driver.do("agent", { agent: "servers", trust_domain: DOMAIN });
  await driver.allAlgorithms("servers");
  const serve = async (kind) => (await driver.do("serve", { agent: "servers", kind, audience: AUDIENCE })).address;
  const url = `http://${await serve("http")}`;
  const client = new grpc.Client(await serve("grpc"), plaintext);
  // google.protobuf.StringValue by hand: field 1, of fewer than 128 bytes.
  const encode = (text) => Buffer.concat([Buffer.from([10, text.length]), Buffer.from(text)]);
  const decode = (bytes) => bytes.subarray(2).toString();
  const metadata = (values) => {
    const all = new grpc.Metadata();
    for (const value of values) all.add("authorization", value);
    return all;
  };
  const call = (method, values) =>
    new Promise((resolve) => {
      const path = `/interop.Interop/${method}`;
      const options = { deadline: Date.now() + PATIENCE };
      client.makeUnaryRequest(path, encode, decode, "hello", metadata(values), options, (error, answer) =>
        resolve(error ? grpc.status[error.code] : answer),
      );
    });
  const stream = (method, values) =>
    new Promise((resolve) => {
      const texts = [];
      const options = { deadline: Date.now() + PATIENCE };
      const messages = client.makeServerStreamRequest(
        `/interop.Interop/${method}`, encode, decode, "hello", metadata(values), options,
      );
      messages.on("data", (text) => texts.push(text));
      messages.on("error", () => {});
      messages.on("status", ({ code }) => resolve([grpc.status[code], ...texts]));
    });
  const get = async (path, values, init = {}) => {
    const headers = values.map((value) => ["authorization", value]);
    return fetch(url + path, { headers, signal: AbortSignal.timeout(PATIENCE), ...init });
  };
  for (const entry of readCases()) {
    const bearer = `Bearer ${await driver.token("servers", entry.spec)}`;
    const id = entry.spec.claims?.sub ?? WEB;
    await row(`node-http-${entry.case}`, "axum's response to fetch", async () => {
      const response = await get("/who", [bearer]);
      if (entry.rejected === undefined) return equal("answer", await response.json(), { id });
      equal("status", response.status, 401);
      const challenge = response.headers.get("www-authenticate");
      equal("challenge names invalid_token", challenge.includes('error="invalid_token"'), true);
    });
    await row(`node-grpc-${entry.case}`, "tonic's response to grpc-js", async () => {
      equal("answer", await call("Who", [bearer]), entry.rejected === undefined ? `hello ${id}` : "UNAUTHENTICATED");
    });
  }
  const good = `Bearer ${await driver.token("servers")}`;
  const ops = `Bearer ${await driver.token("servers", {}, OPS)}`;
  const calls = [
    ["none", "Who", [], "UNAUTHENTICATED", "/who", 401],
    ["basic", "Who", ["Basic dXNlcjpwYXNz"], "UNAUTHENTICATED", "/who", 401],
    // Node sends no second authorization header by HTTP/2.
    ["two-tokens", undefined, [good, good], undefined, "/who", 400],
    ["policy-denies", "Ops", [good], "PERMISSION_DENIED", "/ops", 403],
    ["policy-allows", "Ops", [ops], `hello ${OPS}`, "/ops", 200],
    ["unlisted", "Unlisted", [good], "PERMISSION_DENIED", "/unknown", 404],
    ["unlisted-anonymous", "Unlisted", [], "UNAUTHENTICATED", "/unknown", 401],
  ];
  for (const [name, method, values, answer, path, status] of calls) {
    if (method) {
      await row(`node-grpc-${name}`, "tonic's response to grpc-js", async () => equal("answer", await call(method, values), answer));
    }
    await row(`node-http-${name}`, "axum's response to fetch", async () => equal("status", (await get(path, values)).status, status));
  }
  await row("node-http-body", "a body is echoed", async () => {
    const response = await get("/echo", [good], { method: "POST", body: "the body" });
    equal("body", await response.text(), "the body");
  });
  await row("node-grpc-stream", "a tonic stream arrives completely", async () =>
    equal("messages", await stream("List", [good]), ["OK", "first", "second", WEB]));
  await row("node-grpc-stream-rejected", "a rejected stream is Unauthenticated", async () =>
    equal("messages", await stream("List", ["Bearer x.y.z"]), ["UNAUTHENTICATED"]));
  // The leeway is 10 s: 8 s past the expiry leaves 1 to 2 s.
  const short = `Bearer ${await driver.token("servers", { exp_in: -8, iat_in: -60 })}`;
  await row("node-grpc-stream-expires", "a stream ends with its token", async () =>
    equal("messages", await stream("Wait", [short]), ["UNAUTHENTICATED", "first"]));
  await driver.change("servers", "withdraw");
  await row("node-http-withdrawn", "without usable bundles the response is 503 with Retry-After", () =>
    until(async () => {
      const response = await get("/who", [good]);
      equal("answer", [response.status, response.headers.has("retry-after")], [503, true]);
    }));
  await row("node-grpc-withdrawn", "without usable bundles the code is Unavailable", () =>
    until(async () => equal("answer", await call("Who", [good]), "UNAVAILABLE")));
  client.close();
}

/** grpc-js as a client of the embedded agent. */
async function agent(driver, transport) {
  const name = `agent-${transport}`;
  const { endpoint } = await driver.do("agent", { agent: name, trust_domain: DOMAIN, transport });
  const definition = protoLoader.loadSync(process.env.INTEROP_PROTO);
  const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(definition);
  const client = new SpiffeWorkloadAPI(endpoint.replace("tcp://", ""), plaintext);
  const security = new grpc.Metadata();
  security.add("workload.spiffe.io", "true");
  const call = (method, request, metadata = security) =>
    new Promise((resolve) => {
      const options = { deadline: Date.now() + PATIENCE };
      client[method](request, metadata, options, (error, answer) => resolve(error ? grpc.status[error.code] : answer));
    });
  const rowName = (what) => `node-agent-${transport}-${what}`;
  await row(rowName("fetch"), "FetchJWTSVID returns a token that jose verifies", async () => {
    const { svids } = await call("FetchJWTSVID", { audience: [AUDIENCE] });
    const { jwks } = await driver.do("keys", { issuer: name });
    const { payload } = await jose.jwtVerify(svids[0].svid, jose.createLocalJWKSet(JSON.parse(jwks)), { audience: AUDIENCE });
    equal("ID", payload.sub, svids[0].spiffeId);
  });
  const errors = [
    ["no-header", "FetchJWTSVID", { audience: [AUDIENCE] }, new grpc.Metadata(), "INVALID_ARGUMENT"],
    ["no-audience", "FetchJWTSVID", {}, security, "INVALID_ARGUMENT"],
    ["malformed-id", "FetchJWTSVID", { audience: [AUDIENCE], spiffeId: "web" }, security, "INVALID_ARGUMENT"],
    ["unregistered", "FetchJWTSVID", { audience: [AUDIENCE], spiffeId: "spiffe://example.org/unknown" }, security, "PERMISSION_DENIED"],
    ["malformed-token", "ValidateJWTSVID", { audience: AUDIENCE, svid: "secret" }, security, "INVALID_ARGUMENT"],
  ];
  for (const [what, method, request, metadata, code] of errors) {
    await row(rowName(what), "the status is SPIRE's", async () => equal("code", await call(method, request, metadata), code));
  }
  await row(rowName("validate"), "ValidateJWTSVID accepts our token", async () => {
    const svid = await driver.token(name);
    equal("ID", (await call("ValidateJWTSVID", { audience: AUDIENCE, svid })).spiffeId, WEB);
  });
  await row(rowName("stream"), "a stream shows a rotation and ends with a withdrawal", async () => {
    const messages = [];
    const stream = client.FetchJWTBundles({}, security);
    stream.on("data", ({ bundles }) => messages.push(bundles["spiffe://example.org"].toString()));
    stream.on("error", ({ code }) => messages.push(grpc.status[code]));
    await until(() => equal("messages", messages.length, 1));
    const { kid } = await driver.change(name, "rotate");
    await until(() => equal("messages", messages.length, 2));
    equal("the new key is only in the second message", messages.map((text) => text.includes(kid)), [false, true]);
    await driver.change(name, "withdraw");
    await until(() => equal("end", messages[2], "PERMISSION_DENIED"));
  });
  client.close();
}

const driver = new Driver();
try {
  await ourTokens(driver);
  await theirTokens(driver);
  await servers(driver);
  await agent(driver, "unix");
  await agent(driver, "tcp");
  await connect.run(driver);
  await grpcWeb.run(driver);
} finally {
  driver.close();
}
process.exitCode = harness.failed ? 1 : 0;
