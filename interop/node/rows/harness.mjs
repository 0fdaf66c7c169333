// Rows and the driver.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { isDeepStrictEqual } from "node:util";

export const DOMAIN = "example.org";
export const WEB = "spiffe://example.org/web";
export const OPS = "spiffe://example.org/ops";
export const AUDIENCE = "spiffe://example.org/reports";
export const ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"];
export const PATIENCE = 10_000;

export let failed = false;

/** Runs one row and prints its line. */
export async function row(name, what, check) {
  try {
    await check();
    console.log(`ok ${name} ${what}`);
  } catch (error) {
    failed = true;
    console.log(`FAIL ${name} ${what}: ${String(error).replaceAll("\n", " ")}`);
  }
}

export function equal(what, got, want) {
  if (!isDeepStrictEqual(got, want)) {
    throw new Error(`${what} is ${JSON.stringify(got)}, expected ${JSON.stringify(want)}`);
  }
}

export async function rejects(call) {
  let result;
  try {
    result = await call();
  } catch {
    return;
  }
  throw new Error(`no error, expected one instead of ${JSON.stringify(result)}`);
}

/** Polls a condition until it holds. */
export async function until(condition) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    try {
      return await condition();
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export function readCases() {
  return JSON.parse(readFileSync(process.env.INTEROP_CASES, "utf8"));
}

export function acceptedBy(peer, { rejected, differs = {} }) {
  return (rejected === undefined) !== peer in differs;
}

/** The driver, which runs tower-spiffe, as a child process. */
export class Driver {
  #child = spawn(process.env.INTEROP_DRIVER, { stdio: ["pipe", "pipe", "inherit"] });
  #answers = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();

  async do(command, more = {}) {
    this.#child.stdin.write(JSON.stringify({ do: command, ...more }) + "\n");
    const { value, done } = await this.#answers.next();
    if (done) throw new Error("the driver ended");
    const answer = JSON.parse(value);
    if (typeof answer.error === "string") throw new Error(`driver: ${command}: ${answer.error}`);
    return answer;
  }

  async token(issuer, spec = {}, id = WEB, audience = AUDIENCE) {
    return (await this.do("token", { issuer, id, audience, spec })).token;
  }

  change(agent, what, more = {}) {
    return this.do("change", { agent, what, ...more });
  }

  async allAlgorithms(issuer) {
    for (const algorithm of ALGORITHMS) await this.token(issuer, { algorithm });
  }

  close() {
    this.#child.stdin.end();
  }
}
