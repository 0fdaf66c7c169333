"""Envoy's jwt_authn with keys and tokens of tower-spiffe, in front of its servers.

ENVOY is the path of the program. Prints one line per row: `ok|FAIL <row> <what>`.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile

import grpc
from google.protobuf.wrappers_pb2 import StringValue

import harness
from harness import ALGORITHMS, AUDIENCE, DOMAIN, OPS, PATIENCE, WEB, Driver, accepted_by, equal, read_cases, row, until


def cluster(name, address):
    host, port = address.split(":")
    endpoint = {"address": {"socket_address": {"address": host, "port_value": int(port)}}}
    made = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    }
    if name == "grpc":
        made["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return made


def config(jwks, web, tonic):
    """Envoy verifies tokens, except under /unchecked/, where only the layer does."""
    provider = {
        "audiences": [AUDIENCE],
        "forward": True,
        "require_expiration": True,
        "clock_skew_seconds": 10,
        "local_jwks": {"inline_string": jwks},
    }
    filters = [
        {
            "name": "envoy.filters.http.jwt_authn",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
                "providers": {"spiffe": provider},
                "rules": [
                    {"match": {"prefix": "/unchecked/"}},
                    {"match": {"prefix": "/"}, "requires": {"provider_name": "spiffe"}},
                ],
            },
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        },
    ]
    routes = [
        {"match": {"prefix": "/unchecked/interop.Interop/"},
         "route": {"cluster": "grpc", "prefix_rewrite": "/interop.Interop/"}},
        {"match": {"prefix": "/interop.Interop/"}, "route": {"cluster": "grpc"}},
        {"match": {"prefix": "/unchecked/"}, "route": {"cluster": "web", "prefix_rewrite": "/"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "web"}},
    ]
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "interop",
        "codec_type": "AUTO",
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    listener = {
        "name": "interop",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": [listener], "clusters": [cluster("web", web), cluster("grpc", tonic)]},
    }


class Envoy:
    """Envoy with a configuration, as a child process."""

    def __init__(self, folder, made):
        path = os.path.join(folder, "envoy.json")
        admin = os.path.join(folder, "admin")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(made, file)
        command = [os.environ["ENVOY"], "--config-path", path, "--admin-address-path", admin,
                   "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"]
        self.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def listening():
            with open(admin, encoding="utf-8") as file:
                connection = http.client.HTTPConnection(file.read().strip(), timeout=PATIENCE)
            connection.request("GET", "/listeners?format=json")
            statuses = json.load(connection.getresponse())["listener_statuses"]
            address = statuses[0]["local_address"]["socket_address"]
            return f"{address['address']}:{address['port_value']}"

        try:
            self.address = until(listening)
        except Exception:
            self.stop()
            raise

    def stop(self):
        self.child.terminate()
        self.child.wait(PATIENCE)


def run(driver, folder):
    driver.do("agent", agent="envoy", trust_domain=DOMAIN)
    driver.all_algorithms("envoy")
    web = driver.do("serve", agent="envoy", kind="http", audience=AUDIENCE)["address"]
    tonic = driver.do("serve", agent="envoy", kind="grpc", audience=AUDIENCE)["address"]
    keys = driver.do("keys", issuer="envoy")
    try:
        envoy = Envoy(folder, config(keys["jwks"], web, tonic))
    except Exception as error:
        error_text = str(error)

        def start():
            raise AssertionError(error_text)

        row("envoy-start", "Envoy starts with our JWKS", start)
        return
    row("envoy-start", "Envoy starts with our JWKS", lambda: None)
    try:
        rows(driver, envoy.address)
    finally:
        envoy.stop()


def rows(driver, address):
    def get(path, token=None):
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        finally:
            connection.close()

    for case in read_cases():
        token = driver.token("envoy", case["spec"])
        id = case["spec"].get("claims", {}).get("sub", WEB)

        def checked():
            status, headers, body = get("/who", token)
            # Only our challenge has a description.
            rejected_by = "ours" if "error_description" in str(headers["WWW-Authenticate"]) else "envoy"
            if not accepted_by(case, "envoy"):
                equal("rejection and its origin", (status in (401, 403), rejected_by, body != ""), (True, "envoy", True))
            elif "rejected" in case:
                equal("rejection and its origin", (status, rejected_by), (401, "ours"))
            else:
                equal("answer", (status, json.loads(body)), (200, {"id": id}))

        row(f"envoy-token-{case['case']}", "results of Envoy and the layer on our token", checked)

        def unchecked():
            status, headers, _ = get("/unchecked/who", token)
            equal("status", status, 401 if "rejected" in case else 200)
            if status == 401:
                equal("our challenge is forwarded", 'error="invalid_token"' in headers["WWW-Authenticate"], True)

        row(f"envoy-proxy-{case['case']}", "our response through Envoy", unchecked)

    channel = grpc.insecure_channel(address)

    def code(path, authorization):
        call = channel.unary_unary(path, StringValue.SerializeToString, StringValue.FromString)
        metadata = [("authorization", authorization)] if authorization else []
        try:
            return call(StringValue(value="hello"), metadata=metadata, timeout=PATIENCE).value
        except grpc.RpcError as error:
            return error.code().name

    for algorithm in ALGORITHMS:
        token = driver.token("envoy", {"algorithm": algorithm})
        row(f"envoy-grpc-{algorithm}", "a gRPC call with our token passes Envoy and our layer",
            lambda: equal("answer", code("/interop.Interop/Who", f"Bearer {token}"), f"hello {WEB}"))
    good = driver.token("envoy")
    calls = [
        ("policy-denies", "/interop.Interop/Ops", good, "PERMISSION_DENIED"),
        ("policy-allows", "/interop.Interop/Ops", driver.token("envoy", id=OPS), f"hello {OPS}"),
        ("anonymous", "/interop.Interop/Who", None, "UNAUTHENTICATED"),
        ("unchecked-anonymous", "/unchecked/interop.Interop/Who", None, "UNAUTHENTICATED"),
        ("unchecked-forged", "/unchecked/interop.Interop/Who", driver.token("envoy", {"forged": True}), "UNAUTHENTICATED"),
        ("unchecked-good", "/unchecked/interop.Interop/Who", good, f"hello {WEB}"),
    ]
    for what, path, token, want in calls:
        row(f"envoy-grpc-{what}", "our gRPC status through Envoy",
            lambda: equal("answer", code(path, token and f"Bearer {token}"), want))
    channel.close()


with Driver() as child, tempfile.TemporaryDirectory() as temporary:
    run(child, temporary)
sys.exit(harness.failed)
