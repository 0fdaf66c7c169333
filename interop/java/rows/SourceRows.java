import com.google.gson.JsonObject;
import com.google.protobuf.ByteString;
import com.google.protobuf.StringValue;
import com.nimbusds.jose.crypto.ECDSASigner;
import com.nimbusds.jose.jwk.Curve;
import com.nimbusds.jose.jwk.ECKey;
import com.nimbusds.jose.jwk.JWK;
import com.nimbusds.jose.jwk.JWKSet;
import com.nimbusds.jose.jwk.gen.ECKeyGenerator;
import com.sun.net.httpserver.HttpServer;
import io.grpc.BindableService;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.ServerInterceptors;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollServerDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.workloadapi.JwtSource;
import io.spiffe.workloadapi.grpc.SpiffeWorkloadAPIGrpc.SpiffeWorkloadAPIImplBase;
import io.spiffe.workloadapi.grpc.Workload;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Executors;

/** JwtSource with a grpc-java agent, and the client layer with servers of java.net and grpc-java. */
final class SourceRows {
    static void run(Harness.Driver driver) throws Exception {
        Path folder = Files.createTempDirectory("interop-java");
        ourSource(driver, "unix", folder.resolve("agent.sock"));
        ourSource(driver, "tcp", null);
        Files.deleteIfExists(folder.resolve("agent.sock"));
        Files.deleteIfExists(folder);
        ourClients(driver);
    }

    /** A Workload API server with tokens and keys from nimbus. */
    private static final class Agent extends SpiffeWorkloadAPIImplBase implements ServerInterceptor {
        private final List<JWK> keys = new ArrayList<>();
        private final List<StreamObserver<Workload.JWTBundlesResponse>> streams = new ArrayList<>();
        private Status failure;
        private List<String> header;

        Agent() throws Exception {
            rotate("first");
        }

        synchronized void rotate(String kid) throws Exception {
            keys.add(new ECKeyGenerator(Curve.P_256).keyID(kid).generate());
            streams.forEach(stream -> stream.onNext(bundles()));
        }

        synchronized void fail(Status status) {
            failure = status;
            streams.forEach(stream -> stream.onError(status.asException()));
            streams.clear();
        }

        synchronized void accept() {
            failure = null;
        }

        synchronized List<String> header() {
            return header;
        }

        private Workload.JWTBundlesResponse bundles() {
            var jwks = ByteString.copyFromUtf8(new JWKSet(keys).toString(true));
            return Workload.JWTBundlesResponse.newBuilder().putBundles("spiffe://" + Harness.DOMAIN, jwks).build();
        }

        @Override
        public <Q, A> ServerCall.Listener<Q> interceptCall(ServerCall<Q, A> call, Metadata metadata, ServerCallHandler<Q, A> next) {
            var values = metadata.getAll(Metadata.Key.of("workload.spiffe.io", Metadata.ASCII_STRING_MARSHALLER));
            synchronized (this) {
                header = new ArrayList<>();
                if (values != null) {
                    values.forEach(header::add);
                }
            }
            return next.startCall(call, metadata);
        }

        @Override
        public synchronized void fetchJWTSVID(Workload.JWTSVIDRequest request, StreamObserver<Workload.JWTSVIDResponse> answer) {
            if (failure != null) {
                answer.onError(failure.asException());
                return;
            }
            var svids = Workload.JWTSVIDResponse.newBuilder();
            try {
                ECKey key = keys.get(keys.size() - 1).toECKey();
                for (var identity : List.of(List.of(Harness.WEB, "internal"), List.of(Harness.OPS, "external"))) {
                    String id = identity.get(0);
                    if (request.getSpiffeId().isEmpty() || request.getSpiffeId().equals(id)) {
                        var claims = TokenRows.claims(Map.of("sub", id, "aud", List.copyOf(request.getAudienceList())));
                        String token = TokenRows.sign("ES256", key.getKeyID(), new ECDSASigner(key), claims);
                        svids.addSvids(Workload.JWTSVID.newBuilder().setSpiffeId(id).setSvid(token).setHint(identity.get(1)));
                    }
                }
            } catch (Exception error) {
                answer.onError(Status.INTERNAL.withCause(error).asException());
                return;
            }
            answer.onNext(svids.build());
            answer.onCompleted();
        }

        @Override
        public synchronized void fetchJWTBundles(Workload.JWTBundlesRequest request, StreamObserver<Workload.JWTBundlesResponse> stream) {
            if (failure != null) {
                stream.onError(failure.asException());
                return;
            }
            stream.onNext(bundles());
            streams.add(stream);
        }
    }

    /** Serves the agent on this socket, or on a port if {@code socket} is null. */
    private static Server serve(Agent agent, Path socket, int port) throws Exception {
        agent.streams.clear();
        var service = ServerInterceptors.intercept(agent, agent);
        NettyServerBuilder server;
        if (socket == null) {
            server = NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", port));
        } else {
            Files.deleteIfExists(socket);
            server = NettyServerBuilder.forAddress(new DomainSocketAddress(socket.toString()))
                    .channelType(EpollServerDomainSocketChannel.class)
                    .bossEventLoopGroup(new EpollEventLoopGroup(1))
                    .workerEventLoopGroup(new EpollEventLoopGroup(1));
        }
        return server.addService(service).build().start();
    }

    private static void ourSource(Harness.Driver driver, String transport, Path socket) throws Exception {
        String name = "grpc-java-" + transport;
        String prefix = "java-source-" + transport + "-";
        var agent = new Agent();
        Server[] server = {serve(agent, socket, 0)};
        String endpoint = socket == null ? "tcp://127.0.0.1:" + server[0].getPort() : "unix:" + socket;
        Harness.row(prefix + "start", "JwtSource starts on grpc-java", () ->
                Harness.equal("answer", driver.run("source", "source", name, "endpoint", endpoint), new JsonObject()));
        Harness.Check check = () -> {
            var svid = driver.run("fetch", "source", name, "audience", Harness.AUDIENCE);
            var result = driver.run("check", "source", name, "audience", Harness.AUDIENCE, "token", Harness.text(svid, "token"));
            Harness.equal("ID", Harness.text(result, "id"), Harness.WEB);
        };
        Harness.row(prefix + "fetch", "the fetched bundles verify a fetched token", check);
        Harness.row(prefix + "header", "the security header is sent once", () ->
                Harness.equal("header", agent.header(), List.of("true")));
        Harness.row(prefix + "id", "the requested SPIFFE ID is sent", () -> {
            var svid = driver.run("fetch", "source", name, "audience", Harness.AUDIENCE, "id", Harness.OPS);
            Harness.equal("ID", Harness.text(svid, "id"), Harness.OPS);
        });
        Harness.row(prefix + "hint", "the hint selects the identity", () -> {
            var svid = driver.run("fetch", "source", name, "audience", Harness.AUDIENCE, "hint", "external");
            Harness.equal("ID", Harness.text(svid, "id"), Harness.OPS);
        });
        Harness.row(prefix + "rotate", "the source follows a rotation", () -> {
            agent.rotate("second");
            keys(driver, name, List.of("first", "second"));
            check.run();
        });
        for (Status status : List.of(Status.PERMISSION_DENIED, Status.UNAVAILABLE, Status.INTERNAL, Status.RESOURCE_EXHAUSTED)) {
            Harness.row(prefix + "status-" + status.getCode(), "the status is reported, the source recovers", () -> {
                agent.fail(status);
                var answer = driver.run("fetch", "source", name, "audience", Harness.AUDIENCE);
                Harness.equal("code", answer.get("code").getAsInt(), status.getCode().value());
                boolean withdrawn = status.getCode() == Status.Code.PERMISSION_DENIED;
                if (withdrawn) {
                    Harness.until(() -> Harness.equal("withdrawn", withdrawn(driver, name), true));
                }
                agent.accept();
                Harness.until(() -> {
                    Harness.equal("withdrawn", withdrawn(driver, name), false);
                    check.run();
                });
            });
        }
        Harness.row(prefix + "restart", "the source follows a restarted grpc-java server", () -> {
            int port = server[0].getPort();
            server[0].shutdownNow().awaitTermination();
            server[0] = serve(agent, socket, port);
            agent.rotate("third");
            keys(driver, name, List.of("first", "second", "third"));
            Harness.until(check);
        });
        server[0].shutdownNow();
    }

    private static boolean withdrawn(Harness.Driver driver, String source) throws Exception {
        return driver.run("state", "source", source).get("withdrawn").getAsBoolean();
    }

    private static void keys(Harness.Driver driver, String source, List<String> kids) throws Exception {
        var want = Harness.object(Harness.DOMAIN, kids);
        Harness.until(() -> Harness.equal("keys", driver.run("state", "source", source).get("domains"), want));
    }

    private static void ourClients(Harness.Driver driver) throws Exception {
        String endpoint = Harness.text(driver.run("agent", "agent", "clients", "trust_domain", Harness.DOMAIN), "endpoint");
        driver.change("clients", "register", "id", Harness.WEB);
        driver.run("source", "source", "clients", "endpoint", endpoint);
        var client = AgentRows.client(endpoint.replace("///", "/"));
        var source = AgentRows.source(client);

        var web = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        web.createContext("/", exchange -> {
            int status = 200;
            String text;
            try {
                text = caller(source, exchange.getRequestHeaders().getFirst("Authorization"));
            } catch (Exception error) {
                status = 401;
                text = String.valueOf(error.getMessage());
            }
            byte[] body = text.getBytes(StandardCharsets.UTF_8);
            exchange.sendResponseHeaders(status, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        web.setExecutor(Executors.newFixedThreadPool(2));
        web.start();
        String url = "http://127.0.0.1:" + web.getAddress().getPort() + "/";
        var grpc = NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 0)).addService(whoService(source)).build().start();
        String target = "http://127.0.0.1:" + grpc.getPort();

        Harness.row("java-client-http", "our reqwest client is accepted by java.net's server and java-spiffe", () -> {
            var answer = driver.run("call", "source", "clients", "url", url, "audience", Harness.AUDIENCE);
            Harness.equal("answer", answer, Harness.object("status", 200, "body", Harness.WEB));
        });
        Harness.row("java-client-http-other-audience", "our token for another audience is rejected by java-spiffe", () -> {
            var answer = driver.run("call", "source", "clients", "url", url, "audience", "other");
            Harness.equal("status", answer.get("status").getAsInt(), 401);
        });
        Harness.row("java-client-grpc", "our tonic client is accepted by grpc-java and java-spiffe", () -> {
            var answer = driver.run("call", "source", "clients", "url", target, "audience", Harness.AUDIENCE, "method", "/interop.Interop/Who");
            Harness.equal("answer", answer, Harness.object("code", 0, "body", "hello " + Harness.WEB));
        });
        Harness.row("java-client-grpc-other-audience", "our token for another audience is rejected by java-spiffe", () -> {
            var answer = driver.run("call", "source", "clients", "url", target, "audience", "other", "method", "/interop.Interop/Who");
            Harness.equal("code", answer.get("code").getAsInt(), Status.Code.UNAUTHENTICATED.value());
        });
        source.close();
        client.close();
        grpc.shutdownNow();
        web.stop(0);
    }

    private static String caller(JwtSource source, String authorization) throws Exception {
        String token = authorization.replaceFirst("^Bearer ", "");
        return JwtSvid.parseAndValidate(token, source, Set.of(Harness.AUDIENCE)).getSpiffeId().toString();
    }

    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private static final io.grpc.Context.Key<String> CALLER = io.grpc.Context.key("caller");

    private static ServerServiceDefinition whoService(JwtSource source) {
        BindableService who = () -> ServerServiceDefinition.builder("interop.Interop")
                .addMethod(Grpc.method("Who", MethodType.UNARY), ServerCalls.asyncUnaryCall((request, answer) -> {
                    answer.onNext(StringValue.of(request.getValue() + " " + CALLER.get()));
                    answer.onCompleted();
                }))
                .build();
        return ServerInterceptors.intercept(who, new ServerInterceptor() {
            @Override
            public <Q, A> ServerCall.Listener<Q> interceptCall(ServerCall<Q, A> call, Metadata metadata, ServerCallHandler<Q, A> next) {
                String id;
                try {
                    id = caller(source, metadata.get(AUTHORIZATION));
                } catch (Exception error) {
                    call.close(Status.UNAUTHENTICATED, new Metadata());
                    return new ServerCall.Listener<>() {};
                }
                var context = io.grpc.Context.current().withValue(CALLER, id);
                return io.grpc.Contexts.interceptCall(context, call, metadata, next);
            }
        });
    }

    private SourceRows() {}
}
