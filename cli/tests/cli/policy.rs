//! `policy check` and `policy test`.

use tokio::process::Command;
use tower_spiffe_test_support::temp::TempDir;

use crate::support::{Finished, WEB, program, run};

const POLICY: &str = r#"
[[rule]]
name = "reports"
path = "/reports/{id}"
methods = ["GET"]
ids = ["spiffe://example.org/web"]

[[rule]]
path = "/reports/{id}"
methods = ["DELETE"]
trust_domains = ["example.org"]
claims = { groups = { contains = "ops" } }

[[rule]]
path = "/{*rest}"
methods = "any"
public = true

[[rule]]
grpc_service = "r.Reports"
path_prefixes = ["spiffe://example.org/web"]
"#;

/// The files of a test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(TempDir::new());
        files.write("policy.toml", POLICY);
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program("policy");
        command.args(args).current_dir(self.0.path());
        command
    }

    async fn check(&self, args: &[&str]) -> Finished {
        run(&mut self.command(&[&["check", "policy.toml"], args].concat())).await
    }
}

#[tokio::test]
async fn p08_check_explains_rule_by_rule() {
    let files = Files::new();
    let output = files
        .check(&["--caller", WEB, "--request", "GET /reports/7"])
        .await;
    assert_eq!(
        (output.code, &*output.err),
        (Some(0), ""),
        "{}",
        output.all()
    );
    assert_eq!(
        output.out,
        "pattern: /reports/{id}\n\
         line 2 (reports): allows the request\n\
         line 8: is for other methods: DELETE\n\
         line 14: does not count: its pattern /{*rest} is less specific\n\
         1 rule is for other paths\n\
         decision: allowed\n"
    );
    let output = files
        .check(&["--caller", WEB, "--request", "DELETE /reports/7"])
        .await;
    assert_eq!(output.code, Some(1));
    let claim = "line 8: requires another claim: \"groups\" contains [\"ops\"]";
    assert!(output.out.contains(claim), "{}", output.out);
    let denied = "decision: denied, no rule of the policy file allows the claims of this caller";
    assert!(output.out.contains(denied), "{}", output.out);
}

#[tokio::test]
async fn p08_check_exit_code_is_the_decision() {
    let files = Files::new();
    for (args, code, part) in [
        (
            &["--anonymous", "--request", "GET /reports/7"][..],
            1,
            "a token is required",
        ),
        (&["--anonymous", "--request", "GET /other"], 0, "allowed"),
        (
            &["--anonymous", "--request", "GET //other"],
            1,
            "in several ways",
        ),
        (&["--anonymous", "--request", "GET /"], 1, "none matches"),
        (
            &["--caller", WEB, "--grpc-method", "/r.Reports/Get"],
            0,
            "allowed",
        ),
        (
            &[
                "--caller",
                "spiffe://x/web",
                "--grpc-method",
                "/r.Reports/Get",
            ],
            1,
            "other callers",
        ),
        (
            &[
                "--caller",
                "spiffe://example.org/a",
                "--claims",
                r#"{"groups": ["ops"]}"#,
                "--request",
                "DELETE /reports/7",
            ],
            0,
            "allowed",
        ),
        (&[], 0, "valid, rules: 4"),
    ] {
        let output = files.check(args).await;
        assert_eq!(output.code, Some(code), "{args:?}: {}", output.all());
        assert!(output.out.contains(part), "{args:?}: {}", output.out);
    }
}

#[tokio::test]
async fn p08_check_reports_mistakes() {
    let files = Files::new();
    for (args, part) in [
        (&["--caller", WEB][..], "--request"),
        (&["--request", "GET /"], "--caller"),
        (
            &["--anonymous", "--caller", WEB, "--request", "GET /"],
            "cannot be used with",
        ),
        (
            &["--anonymous", "--claims", "{}", "--request", "GET /"],
            "cannot be used with",
        ),
        (&["--caller", WEB, "--request", "GET"], "GET /reports/7"),
        (&["--caller", WEB, "--request", "get /"], "upper case"),
        (
            &["--caller", WEB, "--grpc-method", "r.R/M"],
            "/package.Service/Method",
        ),
        (
            &["--caller", "web", "--request", "GET /"],
            "is not a SPIFFE ID",
        ),
        (
            &["--caller", WEB, "--claims", "[]", "--request", "GET /"],
            "JSON object",
        ),
    ] {
        let output = files.check(args).await;
        assert_eq!(output.code, Some(2), "{args:?}: {}", output.all());
        assert!(output.err.contains(part), "{args:?}: {}", output.err);
    }
    files.write("policy.toml", "[[rule]]\npath = '/a'\nmethod = ['GET']\n");
    let output = files.check(&[]).await;
    assert_eq!(output.code, Some(2));
    let part = "policy file policy.toml: line 3, column 1: unknown key \"method\"";
    assert!(output.err.contains(part), "{}", output.err);
    let output = run(&mut files.command(&["check", "missing.toml"])).await;
    assert_eq!(output.code, Some(2));
    assert!(
        output.err.contains("missing.toml: it cannot be read"),
        "{}",
        output.err
    );
}

const EXPECTATIONS: &str = r#"
[[expect]]
request = "GET /reports/7"
caller = "spiffe://example.org/web"
decision = "allow"

[[expect]]
request = "DELETE /reports/7"
caller = "spiffe://example.org/a"
claims = { groups = ["ops"] }
decision = "allow"

[[expect]]
grpc_method = "/r.Reports/Get"
caller = "spiffe://example.org/ops"
decision = "deny"

[[expect]]
request = "GET /reports/7"
anonymous = true
decision = "token-required"
"#;

#[tokio::test]
async fn p08_test_compares_decisions() {
    let files = Files::new();
    let test = async |text: &str| {
        files.write("expectations.toml", text);
        run(&mut files.command(&["test", "policy.toml", "expectations.toml"])).await
    };
    let output = test(EXPECTATIONS).await;
    assert_eq!(
        (output.code, &*output.err),
        (Some(0), ""),
        "{}",
        output.all()
    );
    assert!(
        output.out.contains("expectations: 4, failed: 0"),
        "{}",
        output.out
    );
    assert_eq!(output.out.matches("ok      line ").count(), 4);

    let output = test(&EXPECTATIONS.replace("\"deny\"", "\"allow\"")).await;
    assert_eq!(output.code, Some(1));
    assert!(
        output.out.contains("expectations: 4, failed: 1"),
        "{}",
        output.out
    );
    let part =
        "FAILED  line 13: /r.Reports/Get by spiffe://example.org/ops: expected allow, got deny";
    assert!(output.out.contains(part), "{}", output.out);
    assert!(
        output.out.contains("        line 19: is for other callers"),
        "{}",
        output.out
    );

    for (text, part) in [
        ("", "expect"),
        ("expect = []", "no expectations"),
        (
            "[[expect]]\ndecision = 'allow'",
            "line 1: an expectation needs either `request`",
        ),
        (
            "[[expect]]\nrequest = 'GET /'\ndecision = 'allow'",
            "line 1: an expectation needs either `caller`",
        ),
        (
            "[[expect]]\nrequest = 'GET /'\nanonymous = true\nclaims = { a = 1 }\ndecision = 'deny'",
            "cannot have `claims`",
        ),
        (
            "[[expect]]\nrequest = 'GET /'\ndecision = 'maybe'",
            "line 3",
        ),
        (
            "[[expect]]\nrequests = 'GET /'\ndecision = 'deny'",
            "line 2",
        ),
    ] {
        let output = test(text).await;
        assert_eq!(output.code, Some(2), "{text}: {}", output.all());
        assert!(output.err.contains(part), "{text}: {}", output.err);
    }
}

#[tokio::test]
async fn p08_test_passes_for_the_example() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/policy_file");
    let mut command = program("policy");
    command
        .args(["test", "policy.toml", "expectations.toml"])
        .current_dir(dir);
    let output = run(&mut command).await;
    assert_eq!(output.code, Some(0), "{}", output.all());
}

#[tokio::test]
async fn p08_subcommands_have_help_and_examples() {
    for name in ["check", "test"] {
        let output = run(program("policy").args([name, "--help"])).await;
        assert_eq!((output.code, &*output.err), (Some(0), ""));
        assert!(output.out.contains("Exit code: 0 if"), "{}", output.out);
        let example = format!("  tower-spiffe policy {name} policy.toml");
        assert!(output.out.contains(&example), "{}", output.out);
    }
    let output = run(program("completions").arg("bash")).await;
    assert!(output.out.contains("--grpc-method"), "{}", output.err);
}
