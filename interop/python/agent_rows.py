"""py-spiffe and grpcio as clients of the embedded agent."""

import queue
import threading
import time

import grpc
from spiffe import JwtSource, JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient
from spiffe._proto import workload_pb2, workload_pb2_grpc
from spiffe.workloadapi.workload_api_client import RetryPolicy

from harness import ALGORITHMS, AUDIENCE, DOMAIN, OPS, PATIENCE, WEB, equal, raises, row, until

HEADER = (("workload.spiffe.io", "true"),)


def run(driver):
    by_spiffe(driver)
    for transport in ["unix", "tcp"]:
        by_grpcio(driver, transport)


def by_spiffe(driver):
    endpoint = driver.do("agent", agent="py", trust_domain=DOMAIN)["endpoint"]
    driver.change("py", "register", id=WEB, hint="internal")
    driver.change("py", "register", id=OPS, hint="external")
    client = WorkloadApiClient(endpoint, default_timeout=PATIENCE)
    source = JwtSource(client, timeout_in_seconds=PATIENCE)

    def name(row):
        return f"py-agent-unix-{row}"

    def bundle():
        found = source.get_bundle_for_trust_domain(TrustDomain(DOMAIN))
        if found is None:
            raise AssertionError("the bundle is missing")
        return found

    def verified(token, id=WEB):
        equal("ID", str(JwtSvid.parse_and_validate(token, bundle(), {AUDIENCE}).spiffe_id), id)

    row(name("fetch"), "fetch_svid returns a token that JwtSource's bundle verifies",
        lambda: verified(source.fetch_svid({AUDIENCE}).token))
    row(name("fetch-all"), "fetch_svids returns each identity",
        lambda: equal("IDs", [str(svid.spiffe_id) for svid in source.fetch_svids({AUDIENCE})], [WEB, OPS]))
    row(name("fetch-subject"), "the subject selects the identity",
        lambda: verified(source.fetch_svid({AUDIENCE}, subject=SpiffeId(OPS)).token, OPS))

    def unregistered():
        error = raises(lambda: client.fetch_jwt_svid({AUDIENCE}, subject=SpiffeId("spiffe://example.org/unknown")))
        equal("PERMISSION_DENIED is named", "PERMISSION_DENIED" in str(error), True)

    row(name("fetch-unregistered"), "an unregistered subject is PermissionDenied", unregistered)

    def audiences():
        svid = source.fetch_svid({AUDIENCE, "b", "c"})
        equal("audiences", set(svid.audience), {AUDIENCE, "b", "c"})

    row(name("fetch-audiences"), "all audiences are in the token", audiences)

    validations = [
        ("good", {}, AUDIENCE, True),
        ("other-audience", {}, "other", False),
        ("expired", {"exp_in": -120}, AUDIENCE, False),
        ("forged", {"forged": True}, AUDIENCE, False),
        ("malformed", {"literal": "secret"}, AUDIENCE, False),
    ]
    for what, spec, audience, good in validations:

        def validate():
            token = driver.token("py", spec)
            if good:
                equal("ID", str(client.validate_jwt_svid(token, audience).spiffe_id), WEB)
                return
            error = raises(lambda: client.validate_jwt_svid(token, audience))
            equal("INVALID_ARGUMENT is named", "INVALID_ARGUMENT" in str(error), True)

        row(name(f"validate-{what}"), "validate_jwt_svid's result from our agent", validate)

    def x509():
        equal("UNIMPLEMENTED is named", "UNIMPLEMENTED" in str(raises(client.fetch_x509_svid)), True)

    row(name("x509"), "fetch_x509_svid is Unimplemented", x509)
    row(name("bundle"), "JwtSource has the agent's keys",
        lambda: equal("keys", sorted(bundle().jwt_authorities), sorted(driver.do("keys", issuer="py")["kids"])))

    for algorithm in ALGORITHMS:

        def rotate():
            old = source.fetch_svid({AUDIENCE}).token
            kid = driver.change("py", "rotate", algorithm=algorithm)["kid"]
            until(lambda: equal("new key has arrived", kid in bundle().jwt_authorities, True))
            verified(old)
            fresh = client.fetch_jwt_svid({AUDIENCE, algorithm}).token
            equal("ID", str(JwtSvid.parse_and_validate(fresh, bundle(), {AUDIENCE}).spiffe_id), WEB)

        row(name(f"rotate-{algorithm}"), "the source follows a rotation, old tokens stay valid", rotate)

    def revoke():
        token = driver.token("py")
        kid = driver.do("keys", issuer="py")["kids"][-1]
        driver.change("py", "rotate")
        driver.change("py", "revoke", kid=kid)
        until(lambda: raises(lambda: verified(token)))

    row(name("revoke"), "a revoked key is removed, and its tokens are rejected", revoke)

    def foreign():
        return source.get_bundle_for_trust_domain(TrustDomain("example.com"))

    def federate():
        driver.do("federate", agent="py", trust_domain="example.com")
        until(lambda: equal("number of keys", len(foreign().jwt_authorities), 1))
        token = driver.token("example.com", id="spiffe://example.com/db")
        equal("ID", str(JwtSvid.parse_and_validate(token, foreign(), {AUDIENCE}).spiffe_id), "spiffe://example.com/db")

    row(name("federate"), "a federated bundle arrives and verifies", federate)

    def unfederate():
        driver.change("py", "unfederate", trust_domain="example.com")
        until(lambda: equal("bundle", foreign(), None))

    row(name("unfederate"), "a bundle that is no longer federated is removed", unfederate)

    updates = queue.Queue()
    errors = queue.Queue()
    watch = client.stream_jwt_bundles(
        updates.put, errors.put, retry_policy=RetryPolicy(base_backoff_in_seconds=0.02, backoff_factor=1)
    )
    row(name("watch"), "stream_jwt_bundles gets the bundles",
        lambda: equal("number of bundles", len(updates.get(timeout=PATIENCE).bundles), 1))

    def recovers(row_name, what, break_, restore, code):
        def check():
            while not updates.empty():
                updates.get()
            break_()
            if code:
                # Another audience, so that no cached token is returned.
                error = until(lambda: raises(lambda: client.fetch_jwt_svid({"uncached"})))
                equal(f"{code} is named", code in str(error), True)
            restore()
            updates.get(timeout=PATIENCE)
            until(lambda: verified(client.fetch_jwt_svid({AUDIENCE}).token))

        row(name(row_name), what, check)

    def change(what, **arguments):
        return lambda: driver.change("py", what, **arguments)

    recovers("withdraw", "the watch follows a withdrawal and a restoration",
             change("withdraw"), change("restore"), "PERMISSION_DENIED")
    recovers("stop", "the watch follows an agent that stops and starts",
             change("stop"), change("start"), "UNAVAILABLE")
    recovers("restart", "the watch follows a restarted agent", change("restart"), lambda: None, None)
    recovers("cut", "the watch reconnects after closed connections", change("cut"), lambda: None, None)
    for number, code in [(7, "PERMISSION_DENIED"), (8, "RESOURCE_EXHAUSTED"), (13, "INTERNAL"),
                         (14, "UNAVAILABLE"), (16, "UNAUTHENTICATED")]:
        recovers(f"status-{code}", "the status is returned, the client recovers",
                 change("fail", fault="refuse", code=number), change("recover"), code)
    recovers("hang-up", "the watch opens a new stream when one ends",
             change("fail", fault="hang_up"), change("recover"), None)
    row(name("watch-continues"), "no error ended the watch", lambda: equal("errors", list(errors.queue), []))
    watch.cancel()

    def garbage():
        driver.change("py", "fail", fault="garbage", call="fetch_svid")
        raises(lambda: client.fetch_jwt_svid({AUDIENCE}))
        driver.change("py", "recover")
        client.fetch_jwt_svid({AUDIENCE})

    row(name("garbage"), "a malformed token is an error, and the agent recovers", garbage)

    def hang():
        driver.change("py", "fail", fault="hang", call="fetch_svid")
        error = raises(lambda: client.fetch_jwt_svid({AUDIENCE}, timeout=0.1))
        driver.change("py", "recover")
        equal("DEADLINE_EXCEEDED is named", "DEADLINE_EXCEEDED" in str(error), True)

    row(name("hang"), "a call to a silent agent exceeds the deadline", hang)
    source.close()
    client.close()


def by_grpcio(driver, transport):
    agent = f"grpcio-{transport}"
    endpoint = driver.do("agent", agent=agent, trust_domain=DOMAIN, transport=transport)["endpoint"]
    target = endpoint.removeprefix("tcp://")
    if transport == "unix":
        target = "unix:" + endpoint.removeprefix("unix:").replace("///", "/")
    channel = grpc.insecure_channel(target)
    stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
    token = driver.token(agent)

    def code(call):
        try:
            call()
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    def fetch(metadata, audience=(AUDIENCE,), id=""):
        request = workload_pb2.JWTSVIDRequest(audience=audience, spiffe_id=id)
        return stub.FetchJWTSVID(request, metadata=metadata, timeout=PATIENCE)

    def bundles(metadata):
        stream = stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=metadata, timeout=PATIENCE)
        return next(stream)

    def validate(metadata, audience=AUDIENCE, token=token):
        request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
        return stub.ValidateJWTSVID(request, metadata=metadata, timeout=PATIENCE)

    headers = [
        ("header", HEADER, "OK"),
        ("no-header", (), "INVALID_ARGUMENT"),
        ("false-header", (("workload.spiffe.io", "false"),), "INVALID_ARGUMENT"),
        ("two-headers", HEADER + HEADER, "INVALID_ARGUMENT"),
    ]
    for call in [fetch, bundles, validate]:
        for what, metadata, want in headers:
            row(f"py-grpcio-{transport}-{call.__name__}-{what}", "the security header is required, as in SPIRE",
                lambda: equal("code", code(lambda: call(metadata)), want))
    requests = [
        ("no-audience", lambda: fetch(HEADER, audience=()), "INVALID_ARGUMENT"),
        ("malformed-id", lambda: fetch(HEADER, id="web"), "INVALID_ARGUMENT"),
        ("unregistered-id", lambda: fetch(HEADER, id="spiffe://example.org/unknown"), "PERMISSION_DENIED"),
        ("validate-no-audience", lambda: validate(HEADER, audience=""), "INVALID_ARGUMENT"),
        ("validate-no-token", lambda: validate(HEADER, token=""), "INVALID_ARGUMENT"),
        ("x509", lambda: next(stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)), "UNIMPLEMENTED"),
    ]
    for what, call, want in requests:
        row(f"py-grpcio-{transport}-{what}", "the status is SPIRE's", lambda: equal("code", code(call), want))

    def stream():
        messages = queue.Queue()
        calls = stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=HEADER)

        def read():
            try:
                for message in calls:
                    messages.put(message.bundles["spiffe://example.org"])
            except grpc.RpcError as error:
                messages.put(error.code().name)

        threading.Thread(target=read, daemon=True).start()
        first = messages.get(timeout=PATIENCE)
        kid = driver.change(agent, "rotate")["kid"]
        second = messages.get(timeout=PATIENCE)
        equal("the new key is only in the second message", (kid.encode() in first, kid.encode() in second),
              (False, True))
        driver.change(agent, "withdraw")
        equal("end", messages.get(timeout=PATIENCE), "PERMISSION_DENIED")
        driver.change(agent, "restore")

    row(f"py-grpcio-{transport}-stream", "a stream shows a rotation and ends with a withdrawal", stream)

    def pings():
        # grpcio pings without calls; SPIRE's limit is one per 5 min.
        options = [("grpc.keepalive_time_ms", 300_000), ("grpc.keepalive_permit_without_calls", 1)]
        with grpc.insecure_channel(target, options=options) as other:
            idle = workload_pb2_grpc.SpiffeWorkloadAPIStub(other)
            request = workload_pb2.JWTSVIDRequest(audience=[AUDIENCE])
            for _ in range(100):
                idle.FetchJWTSVID(request, metadata=HEADER, timeout=PATIENCE)
        equal("connections closed", driver.do("counts", agent=agent)["too_many_pings"], 0)

    row(f"py-grpcio-{transport}-pings", "grpcio's own pings do not end connections", pings)
    channel.close()
