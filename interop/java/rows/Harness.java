import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Writer;
import java.io.OutputStreamWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.Callable;

/** Rows and the driver. */
final class Harness {
    static final String DOMAIN = "example.org";
    static final String WEB = "spiffe://example.org/web";
    static final String OPS = "spiffe://example.org/ops";
    static final String AUDIENCE = "spiffe://example.org/reports";
    static final List<String> ALGORITHMS =
            List.of("RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512");
    static final Duration PATIENCE = Duration.ofSeconds(10);

    // A null removes a claim.
    private static final Gson GSON = new GsonBuilder().serializeNulls().create();

    static boolean failed;

    interface Check {
        void run() throws Exception;
    }

    /** Runs one row and prints its line. */
    static void row(String name, String what, Check check) {
        try {
            check.run();
        } catch (Exception | AssertionError error) {
            failed = true;
            System.out.println(("FAIL " + name + " " + what + ": " + error).replace('\n', ' '));
            return;
        }
        System.out.println("ok " + name + " " + what);
    }

    static void equal(String what, Object got, Object want) {
        if (!Objects.equals(got, want)) {
            throw new AssertionError(what + " is " + got + ", expected " + want);
        }
    }

    /** Returns what the call throws. */
    static Exception fails(Callable<?> call) {
        Object result;
        try {
            result = call.call();
        } catch (Exception error) {
            return error;
        }
        throw new AssertionError("no error, expected one instead of " + result);
    }

    /** Polls a condition until it holds. */
    static void until(Check condition) throws Exception {
        long deadline = System.nanoTime() + PATIENCE.toNanos();
        while (true) {
            try {
                condition.run();
                return;
            } catch (Exception | AssertionError error) {
                if (System.nanoTime() > deadline) {
                    throw error;
                }
            }
            Thread.sleep(5);
        }
    }

    /** An object with these members: names and values alternate. */
    static JsonObject object(Object... members) {
        JsonObject object = new JsonObject();
        for (int at = 0; at < members.length; at += 2) {
            object.add((String) members[at], GSON.toJsonTree(members[at + 1]));
        }
        return object;
    }

    static String text(JsonObject object, String name) {
        JsonElement value = object.get(name);
        return value == null || value.isJsonNull() ? null : value.getAsString();
    }

    static List<String> texts(JsonObject object, String name) {
        List<String> all = new ArrayList<>();
        object.getAsJsonArray(name).forEach(value -> all.add(value.getAsString()));
        return all;
    }

    /** A token and its results, from the table that all languages share. */
    record Case(String name, JsonObject spec, String rejected, JsonObject differs) {
        boolean acceptedBy(String peer) {
            return (rejected == null) != (differs != null && differs.has(peer));
        }

        /** The subject of the token. */
        String id() {
            JsonObject claims = spec.getAsJsonObject("claims");
            return claims != null && claims.has("sub") ? text(claims, "sub") : WEB;
        }
    }

    static List<Case> cases() throws IOException {
        String table = Files.readString(Path.of(System.getenv("INTEROP_CASES")));
        JsonArray array = JsonParser.parseString(table).getAsJsonArray();
        List<Case> cases = new ArrayList<>();
        for (JsonElement element : array) {
            JsonObject entry = element.getAsJsonObject();
            cases.add(new Case(
                    text(entry, "case"),
                    entry.getAsJsonObject("spec"),
                    text(entry, "rejected"),
                    entry.getAsJsonObject("differs")));
        }
        return cases;
    }

    /** The driver, which runs tower-spiffe, as a child process. */
    static final class Driver implements AutoCloseable {
        private final Process child;
        private final Writer input;
        private final BufferedReader output;

        Driver() throws IOException {
            child = new ProcessBuilder(System.getenv("INTEROP_DRIVER"))
                    .redirectError(ProcessBuilder.Redirect.INHERIT)
                    .start();
            input = new OutputStreamWriter(child.getOutputStream(), StandardCharsets.UTF_8);
            output = new BufferedReader(new InputStreamReader(child.getInputStream(), StandardCharsets.UTF_8));
        }

        JsonObject run(String command, Object... arguments) throws IOException {
            JsonObject line = object(arguments);
            line.addProperty("do", command);
            input.write(line + "\n");
            input.flush();
            JsonObject answer = JsonParser.parseString(output.readLine()).getAsJsonObject();
            if (answer.has("error") && answer.get("error").isJsonPrimitive()) {
                throw new IOException("driver: " + command + ": " + text(answer, "error"));
            }
            return answer;
        }

        String token(String issuer, String id, JsonObject spec) throws IOException {
            return text(run("token", "issuer", issuer, "id", id, "audience", AUDIENCE, "spec", spec), "token");
        }

        String token(String issuer) throws IOException {
            return token(issuer, WEB, object());
        }

        JsonObject change(String agent, String what, Object... more) throws IOException {
            Object[] all = new Object[more.length + 4];
            System.arraycopy(new Object[] {"agent", agent, "what", what}, 0, all, 0, 4);
            System.arraycopy(more, 0, all, 4, more.length);
            return run("change", all);
        }

        /** Makes the issuer create a key for each algorithm. */
        void allAlgorithms(String issuer) throws IOException {
            for (String algorithm : ALGORITHMS) {
                token(issuer, WEB, object("algorithm", algorithm));
            }
        }

        /** Validates the token with keys in this form, `jwks` or `spiffe_bundle`. */
        JsonObject validate(String token, String form, String keys) throws IOException {
            return run("validate", "trust_domain", DOMAIN, "audience", AUDIENCE, "token", token, form, keys);
        }

        @Override
        public void close() throws IOException {
            input.close();
            child.onExit().join();
        }
    }

    private Harness() {}
}
