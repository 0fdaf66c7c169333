import io.grpc.Channel;
import io.grpc.Status.Code;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.List;

/** java.net.http and grpc-java as clients of axum and tonic servers with the layer. */
final class ServerRows {
    private static final HttpClient CLIENT =
            HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    private final String url;
    private final Channel channel;

    private ServerRows(String url, Channel channel) {
        this.url = url;
        this.channel = channel;
    }

    private HttpResponse<String> send(String path, List<String> authorization, String body) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(url + path)).timeout(Harness.PATIENCE);
        authorization.forEach(value -> request.header("Authorization", value));
        if (body != null) {
            request.POST(BodyPublishers.ofString(body));
        }
        return CLIENT.send(request.build(), BodyHandlers.ofString());
    }

    private static String challenge(HttpResponse<?> response) {
        return response.headers().firstValue("WWW-Authenticate").orElse("");
    }

    private Channel with(List<String> authorization) {
        return Grpc.with(channel, "authorization", authorization);
    }

    private Code code(String method, List<String> authorization) {
        return Grpc.code(() -> Grpc.call(with(authorization), method));
    }

    static void run(Harness.Driver driver) throws Exception {
        driver.run("agent", "agent", "servers", "trust_domain", Harness.DOMAIN);
        driver.run("federate", "agent", "servers", "trust_domain", "example.net");
        driver.allAlgorithms("servers");
        String http = Harness.text(driver.run("serve", "agent", "servers", "kind", "http", "audience", Harness.AUDIENCE), "address");
        String grpc = Harness.text(driver.run("serve", "agent", "servers", "kind", "grpc", "audience", Harness.AUDIENCE), "address");
        var channel = Grpc.channel(grpc);
        var servers = new ServerRows("http://" + http, channel);
        servers.tokens(driver);
        servers.requests(driver);
        channel.shutdownNow();
    }

    private void tokens(Harness.Driver driver) throws Exception {
        for (var entry : Harness.cases()) {
            String token = driver.token("servers", Harness.WEB, entry.spec());
            var bearer = List.of("Bearer " + token);
            Harness.row("java-http-" + entry.name(), "axum's response to java.net.http", () -> {
                var response = send("/who", bearer, null);
                if (entry.rejected() == null) {
                    Harness.equal("answer", response.body(), Harness.object("id", entry.id()).toString());
                    return;
                }
                Harness.equal("status", response.statusCode(), 401);
                Harness.equal("challenge names invalid_token", challenge(response).contains("error=\"invalid_token\""), true);
                Harness.equal("token is in the answer", (challenge(response) + response.body()).contains(token), false);
            });
            Harness.row("java-rpc-" + entry.name(), "tonic's response to grpc-java", () -> {
                if (entry.rejected() == null) {
                    Harness.equal("answer", Grpc.call(with(bearer), "Who"), "hello " + entry.id());
                } else {
                    Harness.equal("code", code("Who", bearer), Code.UNAUTHENTICATED);
                }
            });
        }
    }

    private void requests(Harness.Driver driver) throws Exception {
        String good = "Bearer " + driver.token("servers");
        String ops = "Bearer " + driver.token("servers", Harness.OPS, Harness.object());
        String foreign = "Bearer " + driver.token("example.net", "spiffe://example.net/web", Harness.object());
        credential("none", List.of(), 401, null, Code.UNAUTHENTICATED);
        credential("basic", List.of("Basic dXNlcjpwYXNz"), 401, null, Code.UNAUTHENTICATED);
        credential("lower-case-scheme", List.of(good.replace("Bearer", "bearer")), 200, null, Code.OK);
        credential("scheme-alone", List.of("Bearer"), 400, "invalid_request", Code.UNAUTHENTICATED);
        credential("two-tokens", List.of(good, good), 400, "invalid_request", Code.UNAUTHENTICATED);
        credential("word-after-token", List.of(good + " x"), 400, "invalid_request", Code.UNAUTHENTICATED);

        path("policy-denies", "/ops", good, null, 403);
        path("policy-allows", "/ops", ops, null, 200);
        path("foreign-domain", "/who", foreign, null, 403);
        path("unknown-path", "/unknown", good, null, 404);
        path("unknown-path-anonymous", "/unknown", null, null, 401);
        path("body", "/echo", good, "the body", 200);
        path("body-anonymous", "/echo", null, "the body", 401);

        method("policy-denies", "Ops", good, Code.PERMISSION_DENIED);
        method("policy-allows", "Ops", ops, Code.OK);
        method("foreign-domain", "Who", foreign, Code.PERMISSION_DENIED);
        method("unlisted-method", "Unlisted", good, Code.PERMISSION_DENIED);
        method("unlisted-method-anonymous", "Unlisted", null, Code.UNAUTHENTICATED);
        method("public-method", "Version", null, Code.OK);

        Harness.row("java-rpc-stream", "a tonic stream arrives completely", () ->
                Harness.equal("messages", Grpc.stream(with(List.of(good)), "List"), List.of("first", "second", Harness.WEB, "OK")));
        Harness.row("java-rpc-stream-rejected", "a rejected stream is Unauthenticated", () ->
                Harness.equal("messages", Grpc.stream(with(List.of("Bearer x.y.z")), "List"), List.of("UNAUTHENTICATED")));
        Harness.row("java-rpc-stream-expires", "a stream ends with its token", () -> {
            // The leeway is 10 s: 8 s past the expiry leaves 1 to 2 s.
            String token = driver.token("servers", Harness.WEB, Harness.object("exp_in", -8, "iat_in", -60));
            Harness.equal("messages", Grpc.stream(with(List.of("Bearer " + token)), "Wait"), List.of("first", "UNAUTHENTICATED"));
        });
        Harness.row("java-http-keep-alive", "rejections do not affect later requests of a connection", () -> {
            for (int n = 0; n < 20; n++) {
                Harness.equal("status", send("/echo", List.of(good), "x".repeat(1000)).statusCode(), 200);
                Harness.equal("status", send("/echo", List.of("Bearer x.y.z"), "x".repeat(1000)).statusCode(), 401);
            }
        });

        driver.change("servers", "withdraw");
        Harness.row("java-http-withdrawn", "without usable bundles the response is 503 with Retry-After", () -> Harness.until(() -> {
            var response = send("/who", List.of(good), null);
            Harness.equal("status", response.statusCode(), 503);
            Harness.equal("Retry-After is there", response.headers().firstValue("Retry-After").isPresent(), true);
        }));
        Harness.row("java-rpc-withdrawn", "without usable bundles the code is Unavailable", () ->
                Harness.until(() -> Harness.equal("code", code("Who", List.of(good)), Code.UNAVAILABLE)));
        driver.change("servers", "restore");
        Harness.row("java-http-restored", "after a restoration callers are accepted again", () ->
                Harness.until(() -> Harness.equal("status", send("/who", List.of(good), null).statusCode(), 200)));
        Harness.row("java-rpc-restored", "after a restoration callers are accepted again", () ->
                Harness.until(() -> Harness.equal("code", code("Who", List.of(good)), Code.OK)));
    }

    private void credential(String name, List<String> values, int status, String error, Code code) {
        Harness.row("java-http-credential-" + name, "axum's response to java.net.http", () -> {
            var response = send("/who", values, null);
            Harness.equal("status", response.statusCode(), status);
            String challenge = challenge(response);
            if (status == 200) {
                Harness.equal("challenge", challenge, "");
            } else if (error == null) {
                Harness.equal("challenge", challenge, "Bearer realm=\"spiffe\"");
            } else {
                Harness.equal("error is in the challenge", challenge.contains("error=\"" + error + "\""), true);
            }
        });
        Harness.row("java-rpc-credential-" + name, "tonic's response to grpc-java", () ->
                Harness.equal("code", code("Who", values), code));
    }

    private void path(String name, String path, String token, String body, int status) {
        Harness.row("java-http-" + name, "axum's response to java.net.http", () -> {
            var response = send(path, token == null ? List.of() : List.of(token), body);
            Harness.equal("status", response.statusCode(), status);
            if (status == 403) {
                Harness.equal("insufficient_scope", challenge(response).contains("error=\"insufficient_scope\""), true);
            }
            if (status == 200 && body != null) {
                Harness.equal("body", response.body(), body);
            }
        });
    }

    private void method(String name, String method, String token, Code code) {
        Harness.row("java-rpc-" + name, "tonic's response to grpc-java", () ->
                Harness.equal("code", code(method, token == null ? List.of() : List.of(token)), code));
    }
}
