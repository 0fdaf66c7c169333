import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Runs tower-spiffe against java-spiffe, nimbus-jose-jwt, grpc-java and java.net.http.
 *
 * Prints one line per row: `ok|FAIL <row> <what>`. INTEROP_DRIVER names the driver, INTEROP_CASES the
 * table of tokens.
 */
final class Main {
    public static void main(String[] arguments) throws Exception {
        // java-spiffe logs each retry.
        Logger.getLogger("").setLevel(Level.OFF);
        try (Harness.Driver driver = new Harness.Driver()) {
            TokenRows.run(driver);
            AgentRows.run(driver);
            ServerRows.run(driver);
            SourceRows.run(driver);
        }
        // Exit even if clients of failed rows have running threads.
        System.exit(Harness.failed ? 1 : 0);
    }

    private Main() {}
}
