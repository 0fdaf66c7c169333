import io.grpc.Status.Code;
import io.spiffe.bundle.jwtbundle.JwtBundle;
import io.spiffe.bundle.jwtbundle.JwtBundleSet;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.spiffeid.TrustDomain;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.JwtSource;
import io.spiffe.workloadapi.JwtSourceOptions;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.grpc.SpiffeWorkloadAPIGrpc;
import io.spiffe.workloadapi.grpc.SpiffeWorkloadAPIGrpc.SpiffeWorkloadAPIBlockingStub;
import io.spiffe.workloadapi.grpc.Workload;
import io.spiffe.workloadapi.retry.ExponentialBackoffPolicy;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/** java-spiffe and grpc-java as clients of the embedded agent. */
final class AgentRows {
    static void run(Harness.Driver driver) throws Exception {
        for (String transport : List.of("unix", "tcp")) {
            new AgentRows(driver, transport).bySpiffe();
            byGrpc(driver, transport);
        }
    }

    private final Harness.Driver driver;
    private final String agent;
    private final String prefix;
    private final WorkloadApiClient client;
    private final JwtSource source;

    private AgentRows(Harness.Driver driver, String transport) throws Exception {
        this.driver = driver;
        agent = "java-" + transport;
        prefix = "java-agent-" + transport + "-";
        client = client(start(driver, agent, transport));
        driver.change(agent, "register", "id", Harness.WEB, "hint", "internal");
        driver.change(agent, "register", "id", Harness.OPS, "hint", "external");
        source = source(client);
    }

    private static String start(Harness.Driver driver, String agent, String transport) throws Exception {
        var answer = driver.run("agent", "agent", agent, "trust_domain", Harness.DOMAIN, "transport", transport);
        return Harness.text(answer, "endpoint").replace("///", "/");
    }

    static WorkloadApiClient client(String endpoint) throws Exception {
        // The backoff of java-spiffe starts at 1 s.
        var quickly = ExponentialBackoffPolicy.builder()
                .initialDelay(Duration.ofMillis(20))
                .maxDelay(Duration.ofMillis(20))
                .build();
        return DefaultWorkloadApiClient.newClient(DefaultWorkloadApiClient.ClientOptions.builder()
                .spiffeSocketPath(endpoint)
                .exponentialBackoffPolicy(quickly)
                .build());
    }

    static JwtSource source(WorkloadApiClient client) throws Exception {
        return DefaultJwtSource.newSource(JwtSourceOptions.builder()
                .workloadApiClient(client)
                .initTimeout(Harness.PATIENCE)
                .build());
    }

    private void row(String name, String what, Harness.Check check) {
        Harness.row(prefix + name, what, check);
    }

    private void verified(String token, String id) throws Exception {
        var svid = JwtSvid.parseAndValidate(token, source, Set.of(Harness.AUDIENCE));
        Harness.equal("ID", svid.getSpiffeId().toString(), id);
    }

    private JwtBundle bundle(String trustDomain) throws Exception {
        return source.getBundleForTrustDomain(TrustDomain.parse(trustDomain));
    }

    private void bySpiffe() throws Exception {
        row("fetch", "fetchJwtSvid returns a token that JwtSource's bundle verifies", () ->
                verified(source.fetchJwtSvid(Harness.AUDIENCE).getToken(), Harness.WEB));
        row("fetch-all", "fetchJwtSvids returns each identity with its hint", () -> {
            var svids = client.fetchJwtSvids(Harness.AUDIENCE);
            var all = svids.stream().map(svid -> svid.getSpiffeId() + " " + svid.getHint()).toList();
            Harness.equal("identities", all, List.of(Harness.WEB + " internal", Harness.OPS + " external"));
        });
        row("fetch-subject", "the subject selects the identity", () ->
                verified(source.fetchJwtSvid(SpiffeId.parse(Harness.OPS), Harness.AUDIENCE).getToken(), Harness.OPS));
        row("fetch-unregistered", "an unregistered subject is PermissionDenied", () -> {
            var unknown = SpiffeId.parse("spiffe://example.org/unknown");
            Harness.equal("code", Grpc.code(() -> client.fetchJwtSvid(unknown, Harness.AUDIENCE)), Code.PERMISSION_DENIED);
        });
        row("fetch-audiences", "all audiences are in the token", () ->
                Harness.equal("audiences", client.fetchJwtSvid(Harness.AUDIENCE, "b", "c").getAudience(), Set.of(Harness.AUDIENCE, "b", "c")));
        validate("good", Harness.object(), Harness.AUDIENCE, Code.OK);
        validate("other-audience", Harness.object(), "other", Code.INVALID_ARGUMENT);
        validate("expired", Harness.object("exp_in", -120), Harness.AUDIENCE, Code.INVALID_ARGUMENT);
        validate("forged", Harness.object("forged", true), Harness.AUDIENCE, Code.INVALID_ARGUMENT);
        validate("malformed", Harness.object("literal", "secret"), Harness.AUDIENCE, Code.INVALID_ARGUMENT);
        row("x509", "fetchX509Context is Unimplemented", () ->
                Harness.equal("code", Grpc.code(client::fetchX509Context), Code.UNIMPLEMENTED));
        row("bundle", "JwtSource has the agent's keys", () -> {
            var kids = new HashSet<>(Harness.texts(driver.run("keys", "issuer", agent), "kids"));
            Harness.equal("keys", bundle(Harness.DOMAIN).getJwtAuthorities().keySet(), kids);
        });
        for (String algorithm : Harness.ALGORITHMS) {
            row("rotate-" + algorithm, "the source follows a rotation, old tokens stay valid", () -> {
                String old = client.fetchJwtSvid(Harness.AUDIENCE).getToken();
                String kid = Harness.text(driver.change(agent, "rotate", "algorithm", algorithm), "kid");
                Harness.until(() -> Harness.equal("new key has arrived", bundle(Harness.DOMAIN).hasJwtAuthority(kid), true));
                verified(old, Harness.WEB);
                verified(client.fetchJwtSvid(Harness.AUDIENCE, algorithm).getToken(), Harness.WEB);
            });
        }
        row("revoke", "a revoked key is removed, and its tokens are rejected", () -> {
            String token = driver.token(agent);
            verified(token, Harness.WEB);
            var kids = Harness.texts(driver.run("keys", "issuer", agent), "kids");
            driver.change(agent, "rotate");
            driver.change(agent, "revoke", "kid", kids.get(kids.size() - 1));
            Harness.until(() -> Harness.fails(() -> JwtSvid.parseAndValidate(token, source, Set.of(Harness.AUDIENCE))));
        });
        row("federate", "a federated bundle arrives and verifies", () -> {
            driver.run("federate", "agent", agent, "trust_domain", "example.com");
            Harness.until(() -> Harness.equal("number of keys", bundle("example.com").getJwtAuthorities().size(), 1));
            verified(driver.token("example.com", "spiffe://example.com/db", Harness.object()), "spiffe://example.com/db");
        });
        row("unfederate", "a bundle that is no longer federated is removed", () -> {
            driver.change(agent, "unfederate", "trust_domain", "example.com");
            Harness.until(() -> Harness.fails(() -> bundle("example.com")));
        });
        watch();
        row("garbage", "a malformed token is an error, and the agent recovers", () -> {
            driver.change(agent, "fail", "fault", "garbage", "call", "fetch_svid");
            Harness.fails(() -> client.fetchJwtSvid(Harness.AUDIENCE));
            driver.change(agent, "recover");
            client.fetchJwtSvid(Harness.AUDIENCE);
        });
        row("no-goaway", "the agent closes no connection because of too many pings", () ->
                Harness.equal("connections closed", driver.run("counts", "agent", agent).get("too_many_pings").getAsInt(), 0));
        source.close();
        client.close();
    }

    private void validate(String name, Object spec, String audience, Code code) {
        row("validate-" + name, "validateJwtSvid's result from our agent", () -> {
            String token = driver.token(agent, Harness.WEB, (com.google.gson.JsonObject) spec);
            Callable<JwtSvid> call = () -> client.validateJwtSvid(token, audience);
            if (code == Code.OK) {
                Harness.equal("ID", call.call().getSpiffeId().toString(), Harness.WEB);
            } else {
                Harness.equal("code", Grpc.code(call), code);
            }
        });
    }

    /** The stream ends, and the client opens a new one. Other rows test rotation. */
    private void watch() {
        BlockingQueue<JwtBundleSet> updates = new LinkedBlockingQueue<>();
        client.watchJwtBundles(new Watcher<>() {
            @Override
            public void onUpdate(JwtBundleSet update) {
                updates.add(update);
            }

            @Override
            public void onError(Throwable error) {
                // java-spiffe ends a watch that it does not retry.
            }
        });
        Callable<JwtBundleSet> next = () -> {
            var update = updates.poll(Harness.PATIENCE.toMillis(), TimeUnit.MILLISECONDS);
            if (update == null) {
                throw new AssertionError("no update received");
            }
            return update;
        };
        row("watch", "watchJwtBundles gets the bundles", () ->
                Harness.equal("number of bundles", next.call().getBundles().size(), 1));

        class Recovery {
            /** If there is no code, only the stream is checked. */
            void row(String name, String what, Harness.Check fail, Harness.Check restore, Code code) {
                AgentRows.this.row(name, what, () -> {
                    updates.clear();
                    fail.run();
                    if (code != null) {
                        // Another audience, so that no cached token is returned.
                        Harness.until(() -> Harness.equal("code", Grpc.code(() -> client.fetchJwtSvid("uncached")), code));
                    }
                    restore.run();
                    next.call();
                    Harness.until(() -> verified(client.fetchJwtSvid(Harness.AUDIENCE).getToken(), Harness.WEB));
                });
            }
        }
        var recovery = new Recovery();
        Harness.Check nothing = () -> {};
        Function<String, Harness.Check> change = what -> () -> driver.change(agent, what);
        recovery.row("withdraw", "the watch follows a withdrawal and a restoration", change.apply("withdraw"), change.apply("restore"), Code.PERMISSION_DENIED);
        recovery.row("stop", "the watch follows an agent that stops and starts", change.apply("stop"), change.apply("start"), Code.UNAVAILABLE);
        recovery.row("restart", "the watch follows a restarted agent", change.apply("restart"), nothing, null);
        recovery.row("cut", "the watch reconnects after closed connections", change.apply("cut"), nothing, null);
        for (Code code : List.of(Code.UNAVAILABLE, Code.PERMISSION_DENIED, Code.INTERNAL, Code.RESOURCE_EXHAUSTED, Code.UNAUTHENTICATED)) {
            recovery.row(
                    "status-" + code,
                    "the status is returned, the client recovers",
                    () -> driver.change(agent, "fail", "fault", "refuse", "code", code.value()),
                    change.apply("recover"),
                    code);
        }
    }

    /** Calls that java-spiffe does not support. */
    private static void byGrpc(Harness.Driver driver, String transport) throws Exception {
        String agent = "grpc-java-" + transport;
        var channel = Grpc.channel(start(driver, agent, transport));
        String token = driver.token(agent);
        Function<List<String>, SpiffeWorkloadAPIBlockingStub> stub = values ->
                SpiffeWorkloadAPIGrpc.newBlockingStub(Grpc.with(channel, "workload.spiffe.io", values))
                        .withDeadlineAfter(Harness.PATIENCE.toMillis(), TimeUnit.MILLISECONDS);
        var svid = Workload.JWTSVIDRequest.newBuilder().addAudience(Harness.AUDIENCE).build();
        var bundles = Workload.JWTBundlesRequest.getDefaultInstance();
        var validate = Workload.ValidateJWTSVIDRequest.newBuilder().setAudience(Harness.AUDIENCE).setSvid(token).build();
        Object[][] headers = {
            {"header", List.of("true"), Code.OK},
            {"no-header", List.of(), Code.INVALID_ARGUMENT},
            {"false-header", List.of("false"), Code.INVALID_ARGUMENT},
            {"two-headers", List.of("true", "true"), Code.INVALID_ARGUMENT},
        };
        for (Object[] header : headers) {
            @SuppressWarnings("unchecked")
            var values = (List<String>) header[1];
            String prefix = "java-grpc-" + transport + "-" + header[0] + "-";
            String what = "the security header is required, as by SPIRE";
            Harness.row(prefix + "fetch", what, () ->
                    Harness.equal("code", Grpc.code(() -> stub.apply(values).fetchJWTSVID(svid)), header[2]));
            Harness.row(prefix + "bundles", what, () ->
                    Harness.equal("code", Grpc.code(() -> stub.apply(values).fetchJWTBundles(bundles).next()), header[2]));
            Harness.row(prefix + "validate", what, () ->
                    Harness.equal("code", Grpc.code(() -> stub.apply(values).validateJWTSVID(validate)), header[2]));
        }
        var good = List.of("true");
        Object[][] requests = {
            {"no-audience", svid.toBuilder().clearAudience().build(), Code.INVALID_ARGUMENT},
            {"malformed-id", svid.toBuilder().setSpiffeId("web").build(), Code.INVALID_ARGUMENT},
            {"unregistered-id", svid.toBuilder().setSpiffeId("spiffe://example.org/unknown").build(), Code.PERMISSION_DENIED},
        };
        for (Object[] request : requests) {
            Harness.row("java-grpc-" + transport + "-" + request[0], "the status is SPIRE's", () ->
                    Harness.equal("code", Grpc.code(() -> stub.apply(good).fetchJWTSVID((Workload.JWTSVIDRequest) request[1])), request[2]));
        }
        Harness.row("java-grpc-" + transport + "-hang", "a call to a silent agent exceeds the deadline", () -> {
            driver.change(agent, "fail", "fault", "hang", "call", "fetch_svid");
            var soon = stub.apply(good).withDeadlineAfter(100, TimeUnit.MILLISECONDS);
            var code = Grpc.code(() -> soon.fetchJWTSVID(svid));
            driver.change(agent, "recover");
            Harness.equal("code", code, Code.DEADLINE_EXCEEDED);
        });
        Harness.row("java-grpc-" + transport + "-stream", "a stream shows a rotation and ends with a withdrawal", () -> {
            var stream = stub.apply(good).fetchJWTBundles(bundles);
            String first = stream.next().getBundlesOrThrow("spiffe://example.org").toStringUtf8();
            String kid = Harness.text(driver.change(agent, "rotate"), "kid");
            String second = stream.next().getBundlesOrThrow("spiffe://example.org").toStringUtf8();
            Harness.equal("the new key is only in the second message", List.of(first.contains(kid), second.contains(kid)), List.of(false, true));
            driver.change(agent, "withdraw");
            Harness.equal("end", Grpc.code(stream::next), Code.PERMISSION_DENIED);
        });
        channel.shutdownNow();
    }
}
