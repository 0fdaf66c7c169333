"""http.client and grpcio as clients of axum and tonic servers with the layer."""

import http.client
import json

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from harness import AUDIENCE, DOMAIN, OPS, PATIENCE, WEB, equal, read_cases, row, until


def run(driver):
    driver.do("agent", agent="servers", trust_domain=DOMAIN)
    driver.do("federate", agent="servers", trust_domain="example.net")
    driver.all_algorithms("servers")
    address = driver.do("serve", agent="servers", kind="http", audience=AUDIENCE)["address"]
    channel = grpc.insecure_channel(
        driver.do("serve", agent="servers", kind="grpc", audience=AUDIENCE)["address"]
    )

    def get(path, authorization=(), method="GET", body=None):
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        try:
            connection.putrequest(method, path)
            for value in authorization:
                connection.putheader("Authorization", value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        finally:
            connection.close()

    def call(method, authorization=(), stream=False):
        kind = channel.unary_stream if stream else channel.unary_unary
        rpc = kind(f"/interop.Interop/{method}", StringValue.SerializeToString, StringValue.FromString)
        metadata = [("authorization", value) for value in authorization]
        answer = rpc(StringValue(value="hello"), metadata=metadata, timeout=PATIENCE)
        return [message.value for message in answer] if stream else answer.value

    def code(*arguments, **more):
        try:
            call(*arguments, **more)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    for case in read_cases():
        token = driver.token("servers", case["spec"])
        id = case["spec"].get("claims", {}).get("sub", WEB)

        def by_http():
            status, headers, body = get("/who", [f"Bearer {token}"])
            if "rejected" not in case:
                equal("answer", (status, json.loads(body)), (200, {"id": id}))
                return
            equal("status", status, 401)
            challenge = headers["WWW-Authenticate"]
            equal("challenge names invalid_token", 'error="invalid_token"' in challenge, True)
            equal("token is in the response", token in body + challenge, False)

        def by_grpc():
            if "rejected" not in case:
                equal("answer", call("Who", [f"Bearer {token}"]), f"hello {id}")
            else:
                equal("code", code("Who", [f"Bearer {token}"]), "UNAUTHENTICATED")

        row(f"py-http-{case['case']}", "axum's response to http.client", by_http)
        row(f"py-grpc-{case['case']}", "tonic's response to grpcio", by_grpc)

    good = driver.token("servers")
    admin = driver.token("servers", id=OPS)
    foreign = driver.token("example.net", id="spiffe://example.net/web")
    credentials = [
        ("none", [], 401, None, "UNAUTHENTICATED"),
        ("basic", ["Basic dXNlcjpwYXNz"], 401, None, "UNAUTHENTICATED"),
        ("lower-case-scheme", [f"bearer {good}"], 200, None, "OK"),
        ("scheme-alone", ["Bearer"], 400, "invalid_request", "UNAUTHENTICATED"),
        ("two-tokens", [f"Bearer {good}"] * 2, 400, "invalid_request", "UNAUTHENTICATED"),
        ("word-after-token", [f"Bearer {good} x"], 400, "invalid_request", "UNAUTHENTICATED"),
    ]
    for what, values, want, error, grpc_code in credentials:

        def credential():
            status, headers, _ = get("/who", values)
            equal("status", status, want)
            challenge = headers["WWW-Authenticate"]
            if want == 200:
                equal("challenge", challenge, None)
            elif error:
                equal("error is in the challenge", f'error="{error}"' in challenge, True)
            else:
                equal("challenge", challenge.startswith("Bearer ") and "error=" not in challenge, True)

        row(f"py-http-credential-{what}", "axum's response to http.client", credential)
        row(f"py-grpc-credential-{what}", "tonic's response to grpcio",
            lambda: equal("code", code("Who", values), grpc_code))

    paths = [
        ("policy-denies", "GET", "/ops", good, 403),
        ("policy-allows", "GET", "/ops", admin, 200),
        ("foreign-domain", "GET", "/who", foreign, 403),
        ("unknown-path", "GET", "/unknown", good, 404),
        ("unknown-path-anonymous", "GET", "/unknown", None, 401),
        ("body", "POST", "/echo", good, 200),
        ("body-anonymous", "POST", "/echo", None, 401),
    ]
    for what, method, path, token, want in paths:

        def path_row():
            body = b"the body" if method == "POST" else None
            authorization = [f"Bearer {token}"] if token else []
            status, headers, text = get(path, authorization, method, body)
            equal("status", status, want)
            if want == 403:
                equal("insufficient_scope", 'error="insufficient_scope"' in headers["WWW-Authenticate"], True)
            if what == "body":
                equal("body", text, "the body")

        row(f"py-http-{what}", "axum's response to http.client", path_row)

    methods = [
        ("policy-denies", "Ops", good, "PERMISSION_DENIED"),
        ("policy-allows", "Ops", admin, "OK"),
        ("foreign-domain", "Who", foreign, "PERMISSION_DENIED"),
        ("unlisted-method", "Unlisted", good, "PERMISSION_DENIED"),
        ("unlisted-method-anonymous", "Unlisted", None, "UNAUTHENTICATED"),
        ("public-method", "Version", None, "OK"),
    ]
    for what, method, token, want in methods:
        row(f"py-grpc-{what}", "tonic's response to grpcio",
            lambda: equal("code", code(method, [f"Bearer {token}"] if token else []), want))

    row("py-grpc-stream", "a tonic stream arrives completely",
        lambda: equal("messages", call("List", [f"Bearer {good}"], stream=True), ["first", "second", WEB]))
    row("py-grpc-stream-rejected", "a rejected stream is Unauthenticated",
        lambda: equal("code", code("List", ["Bearer x.y.z"], stream=True), "UNAUTHENTICATED"))

    def expires():
        # The leeway is 10 s: 8 s past the expiry leaves 1 to 2 s.
        token = driver.token("servers", {"exp_in": -8, "iat_in": -60})
        equal("code", code("Wait", [f"Bearer {token}"], stream=True), "UNAUTHENTICATED")

    row("py-grpc-stream-expires", "a stream ends with its token", expires)

    def one_connection():
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        for token, want in [(good, 200), ("x.y.z", 401)] * 20:
            connection.request("POST", "/echo", b"x" * 1000, {"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            response.read()
            equal("status", response.status, want)
        connection.close()

    row("py-http-keep-alive", "rejections do not affect later requests of a connection", one_connection)

    driver.change("servers", "withdraw")

    def withdrawn():
        status, headers, _ = get("/who", [f"Bearer {good}"])
        equal("status", status, 503)
        equal("Retry-After is present", headers["Retry-After"] is not None, True)

    row("py-http-withdrawn", "without usable bundles the response is 503 with Retry-After",
        lambda: until(withdrawn))
    row("py-grpc-withdrawn", "without usable bundles the code is Unavailable",
        lambda: until(lambda: equal("code", code("Who", [f"Bearer {good}"]), "UNAVAILABLE")))
    driver.change("servers", "restore")
    row("py-http-restored", "after a restoration callers are accepted again",
        lambda: until(lambda: equal("status", get("/who", [f"Bearer {good}"])[0], 200)))
    row("py-grpc-restored", "after a restoration callers are accepted again",
        lambda: until(lambda: equal("code", code("Who", [f"Bearer {good}"]), "OK")))
    channel.close()
