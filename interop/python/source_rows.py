"""JwtSource with a grpcio agent, and the client layer with http.server and grpcio servers."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.wrappers_pb2 import StringValue
from jwt.algorithms import ECAlgorithm
from spiffe import JwtSource, JwtSvid, TrustDomain
from spiffe._proto import workload_pb2, workload_pb2_grpc

from harness import AUDIENCE, DOMAIN, OPS, PATIENCE, WEB, equal, row, until


class Agent(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """A Workload API server with tokens and keys from PyJWT."""

    def __init__(self):
        self.changed = threading.Condition()
        self.keys = {}
        self.version = 0
        self.error = None
        self.header = None
        self.rotate("first")

    def change(self, change):
        with self.changed:
            change()
            self.version += 1
            self.changed.notify_all()

    def rotate(self, kid):
        key = ec.generate_private_key(ec.SECP256R1())
        self.change(lambda: self.keys.update({kid: key}))

    def set_error(self, code):
        self.change(lambda: setattr(self, "error", code))

    def check(self, context):
        if self.error:
            context.abort(self.error, "error of the test")

    def FetchJWTSVID(self, request, context):
        metadata = context.invocation_metadata()
        self.header = [value for name, value in metadata if name == "workload.spiffe.io"]
        self.check(context)
        kid, key = list(self.keys.items())[-1]
        now = int(time.time())
        svids = []
        for id, hint in [(WEB, "internal"), (OPS, "external")]:
            if request.spiffe_id in ("", id):
                claims = {"sub": id, "aud": list(request.audience), "iat": now, "exp": now + 300}
                token = jwt.encode(claims, key, "ES256", {"kid": kid})
                svids.append(workload_pb2.JWTSVID(spiffe_id=id, svid=token, hint=hint))
        return workload_pb2.JWTSVIDResponse(svids=svids)

    def FetchJWTBundles(self, request, context):
        seen = -1
        while context.is_active():
            with self.changed:
                self.changed.wait_for(lambda: self.version != seen, timeout=0.1)
                if self.version == seen:
                    continue
                seen = self.version
                self.check(context)
                keys = [
                    {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}
                    for kid, key in self.keys.items()
                ]
            jwks = json.dumps({"keys": keys}).encode()
            yield workload_pb2.JWTBundlesResponse(bundles={f"spiffe://{DOMAIN}": jwks})


def serve_agent(agent, address="127.0.0.1:0"):
    server = grpc.server(ThreadPoolExecutor(8))
    workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(agent, server)
    port = server.add_insecure_port(address)
    server.start()
    return server, port


def run(driver):
    our_source(driver)
    our_clients(driver)


def our_source(driver):
    agent = Agent()
    server, port = serve_agent(agent)

    def start():
        equal("answer", driver.do("source", source="grpcio", endpoint=f"tcp://127.0.0.1:{port}"), {})

    row("py-source-start", "JwtSource starts on grpcio", start)

    def fetch(**arguments):
        return driver.do("fetch", source="grpcio", audience=AUDIENCE, **arguments)

    def check():
        answer = fetch()
        result = driver.do("check", source="grpcio", audience=AUDIENCE, token=answer["token"])
        equal("ID", result.get("id"), WEB)

    def state():
        return driver.do("state", source="grpcio")

    row("py-source-fetch", "the fetched bundles verify a fetched token", check)
    row("py-source-header", "the security header is sent once", lambda: equal("header", agent.header, ["true"]))
    row("py-source-id", "the requested SPIFFE ID is sent", lambda: equal("ID", fetch(id=OPS)["id"], OPS))
    row("py-source-hint", "the hint selects the identity", lambda: equal("ID", fetch(hint="external")["id"], OPS))

    def keys(*want):
        until(lambda: equal("keys", state()["domains"], {DOMAIN: list(want)}))

    def rotate():
        agent.rotate("second")
        keys("first", "second")
        check()

    row("py-source-rotate", "the source follows a rotation", rotate)
    codes = [
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ]
    for code in codes:

        def reported():
            agent.set_error(code)
            equal("code", fetch().get("code"), code.value[0])
            if code is grpc.StatusCode.PERMISSION_DENIED:
                until(lambda: equal("withdrawn", state()["withdrawn"], True))
            agent.set_error(None)
            until(lambda: equal("withdrawn", state()["withdrawn"], False))
            until(check)

        row(f"py-source-status-{code.name}", "the status is reported, the source recovers", reported)

    def restart():
        nonlocal server
        server.stop(0).wait()
        agent.rotate("third")
        server, _ = serve_agent(agent, f"127.0.0.1:{port}")
        keys("first", "second", "third")
        until(check)

    row("py-source-restart", "the source follows a restarted grpcio server", restart)
    server.stop(0)


def our_clients(driver):
    endpoint = driver.do("agent", agent="clients", trust_domain=DOMAIN)["endpoint"]
    driver.change("clients", "register", id=WEB)
    driver.do("source", source="clients", endpoint=endpoint)
    source = JwtSource(socket_path=endpoint, timeout_in_seconds=PATIENCE)

    def caller(authorization):
        bundle = source.get_bundle_for_trust_domain(TrustDomain(DOMAIN))
        token = authorization.removeprefix("Bearer ")
        return str(JwtSvid.parse_and_validate(token, bundle, {AUDIENCE}).spiffe_id)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            try:
                status, body = 200, caller(self.headers["Authorization"])
            except Exception as error:
                status, body = 401, str(error)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{web.server_port}/"

    def who(request, context):
        try:
            id = caller(dict(context.invocation_metadata())["authorization"])
        except Exception as error:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        return StringValue(value=f"{request.value} {id}")

    handler = grpc.unary_unary_rpc_method_handler(
        who, request_deserializer=StringValue.FromString, response_serializer=StringValue.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("interop.Interop", {"Who": handler}),))
    target = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    def call(url, audience, **arguments):
        return driver.do("call", source="clients", url=url, audience=audience, **arguments)

    def check(audience, want):
        answer = call(url, audience)
        equal("status", answer["status"], want)
        if want == 200:
            equal("body", answer["body"], WEB)

    row("py-client-http", "our reqwest client is accepted by http.server and py-spiffe",
        lambda: check(AUDIENCE, 200))
    row("py-client-http-other-audience", "our token for another audience is rejected by py-spiffe",
        lambda: check("other", 401))
    row("py-client-grpc", "our tonic client is accepted by grpcio and py-spiffe",
        lambda: equal("answer", call(target, AUDIENCE, method="/interop.Interop/Who"),
                      {"code": 0, "body": f"hello {WEB}"}))
    row("py-client-grpc-other-audience", "our token for another audience is rejected by py-spiffe",
        lambda: equal("code", call(target, "other", method="/interop.Interop/Who")["code"], 16))

    source.close()
    server.stop(0)
    web.shutdown()
