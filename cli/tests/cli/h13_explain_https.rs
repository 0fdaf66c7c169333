//! `explain --bundles https://…`, against a TLS server on loopback.

use serde_json::json;
use tower_spiffe_test_support::temp::TempDir;
use tower_spiffe_test_support::tls_server::{Ca, Reply, Server};

use crate::explain::{AUDIENCE, NOW, es256, run};

const ENDPOINT: &str = "spiffe://td.test/spire/server";

struct Fixture {
    ca: Ca,
    server: Server,
    dir: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let ca = Ca::new();
        let server = Server::start(ca.for_host("localhost")).await;
        let dir = TempDir::new();
        std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
        Self { ca, server, dir }
    }

    /// A SPIFFE bundle with the key of the tokens and the root of the endpoint.
    fn bundle(&self) -> String {
        let mut jwk = es256().jwk();
        jwk["use"] = json!("jwt-svid");
        json!({"spiffe_sequence": 7, "keys": [jwk, self.ca.jwk()]}).to_string()
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// Explains a valid token with the bundles at `url`.
    async fn explain(&self, url: &str, more: &[&str]) -> (i32, String) {
        let now = NOW.to_string();
        let args = ["--audience", AUDIENCE, "--now", &now, "--bundles", url];
        let args: Vec<String> = args.iter().chain(more).map(|&arg| arg.into()).collect();
        let token = es256().token().into_bytes();
        // The server runs on this thread.
        let ended = tokio::task::spawn_blocking(move || run(&args, &token));
        let (code, output) = ended.await.unwrap();
        assert!(!output.contains("eyJ"), "a token was printed");
        (code, output)
    }
}

const TD: [&str; 2] = ["--trust-domain", "td.test"];

#[tokio::test]
async fn h13_explain_reads_each_kind_of_url() {
    let fixture = Fixture::new().await;
    let (ca, bootstrap) = (fixture.path("ca.pem"), fixture.path("bootstrap.json"));
    std::fs::write(&bootstrap, fixture.bundle()).unwrap();
    let mut sig = es256().jwk();
    sig["use"] = json!("sig");
    let jwks = json!({"keys": [sig, {"kty": "AKP", "kid": "tomorrow"}]}).to_string();
    let discovery = json!({
        "issuer": fixture.server.url(""), "jwks_uri": fixture.server.url("/keys"),
    });
    let bundle = fixture.bundle();
    fixture.server.script(move |path| match path {
        "/keys" => Reply::json(&jwks),
        "/.well-known/openid-configuration" => Reply::json(discovery.to_string()),
        _ => Reply::json(&bundle),
    });
    for (url, kind, what) in [
        (fixture.server.url("/keys"), "--jwks", "read as a JWK Set"),
        (fixture.server.url(""), "--oidc", "read as an OIDC issuer"),
    ] {
        let args = [&TD[..], &[kind, "--ca", &ca]].concat();
        let (code, output) = fixture.explain(&url, &args).await;
        assert_eq!(code, 0, "{output}");
        assert!(output.contains(what) && output.contains(&url), "{output}");
        assert!(output.contains("(\"tomorrow\") is ignored"), "{output}");
    }
    let endpoint = fixture.server.url("/bundle");
    let web = [&TD[..], &["--https-web", "--ca", &ca]].concat();
    let (code, output) = fixture.explain(&endpoint, &web).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("  spiffe_sequence 7\n"), "{output}");
    // A bundle endpoint is strict about `use`.
    let (code, output) = fixture.explain(&fixture.server.url("/keys"), &web).await;
    assert_eq!(code, 1, "{output}");
    assert!(
        output.contains("no key of the document is usable"),
        "{output}"
    );

    fixture.server.certificate(fixture.ca.for_ids(&[ENDPOINT]));
    let spiffe = ["--https-spiffe", ENDPOINT, "--bootstrap", &bootstrap];
    let (code, output) = fixture
        .explain(&endpoint, &[&TD[..], &spiffe].concat())
        .await;
    assert_eq!(code, 0, "{output}");
    let other = "spiffe://td.test/other";
    let args = ["--https-spiffe", other, "--bootstrap", &bootstrap];
    let (code, output) = fixture.explain(&endpoint, &[&TD[..], &args].concat()).await;
    assert_eq!(code, 2, "{output}");
    assert!(output.contains("is not the configured one"), "{output}");
}

#[tokio::test]
async fn h13_explain_names_the_cause_of_failed_polls() {
    let fixture = Fixture::new().await;
    let ca = fixture.path("ca.pem");
    let url = fixture.server.url("/keys");
    let jwks = [&TD[..], &["--jwks", "--ca", &ca]].concat();
    for (reply, why) in [
        (Reply::status("403 Forbidden"), "HTTP status 403"),
        (
            Reply::json("<html>log in</html>"),
            "check whether the URL is of the kind that the option names",
        ),
        (Reply::redirect("http://localhost/"), "scheme is not https"),
        (
            Reply::json("").header("content-encoding", "gzip"),
            "compressed",
        ),
    ] {
        fixture.server.answer(reply);
        let (code, output) = fixture.explain(&url, &jwks).await;
        assert_eq!(code, 2, "{output}");
        assert!(output.starts_with(&format!("explain: {url}: ")), "{output}");
        assert!(output.contains(why), "{output}");
    }
    let discovery = json!({"issuer": "https://x.test", "jwks_uri": url});
    fixture.server.answer(Reply::json(discovery.to_string()));
    let oidc = [&TD[..], &["--oidc", "--ca", &ca]].concat();
    let (_, output) = fixture.explain(&fixture.server.url(""), &oidc).await;
    assert!(output.contains("`issuer` is not exactly"), "{output}");
    // Without the CA.
    let (code, output) = fixture
        .explain(&url, &[&TD[..], &["--jwks"]].concat())
        .await;
    assert_eq!(code, 2, "{output}");
    assert!(output.contains("TLS handshake failed"), "{output}");
    assert!(
        output.contains("add its root certificate with --ca"),
        "{output}"
    );
    let (_, output) = fixture
        .explain("https://localhost:1/", &[&TD[..], &["--jwks"]].concat())
        .await;
    assert!(output.contains("the connection failed"), "{output}");
}

#[tokio::test]
async fn h13_explain_rejects_options_that_do_not_fit() {
    let fixture = Fixture::new().await;
    let file = fixture.path("bundle.json");
    let ca = fixture.path("ca.pem");
    std::fs::write(&file, json!({"keys": [es256().jwk()]}).to_string()).unwrap();
    let url = fixture.server.url("/keys");
    let http = url.replace("https", "http");
    let missing = fixture.path("missing");
    for (bundles, args, why) in [
        (&url, vec![], "--bundles is a URL: add --jwks"),
        (&url, vec!["--format", "jwks"], "--bundles is a URL"),
        (&http, vec!["--jwks"], "its scheme is not https"),
        (&http, vec!["--oidc"], "its scheme is not https"),
        (&file, vec!["--jwks"], "are for URLs"),
        (&file, vec!["--ca", &ca], "required"),
        (&file, vec!["--bootstrap", &file], "required"),
        (&url, vec!["--jwks", "--oidc"], "cannot be used with"),
        (
            &url,
            vec!["--jwks", "--format", "jwks"],
            "cannot be used with",
        ),
        (
            &url,
            vec!["--jwks", "--bootstrap", &file],
            "cannot be used with",
        ),
        (&url, vec!["--https-spiffe", ENDPOINT], "--bootstrap <FILE>"),
        (
            &url,
            vec!["--https-spiffe", "server", "--bootstrap", &file],
            "invalid value 'server'",
        ),
        (
            &url,
            vec!["--https-spiffe", ENDPOINT, "--bootstrap", &missing],
            "the bootstrap bundle cannot be read",
        ),
        (&url, vec!["--jwks", "--ca", &missing], "cannot read "),
        (
            &url,
            vec!["--jwks", "--ca", &file],
            "the PEM has no certificate",
        ),
    ] {
        let (code, output) = fixture.explain(bundles, &[&TD[..], &args].concat()).await;
        assert_eq!(code, 2, "{args:?}: {output}");
        assert!(output.contains(why), "{args:?}: {output}");
    }
    let (code, output) = fixture.explain(&url, &["--jwks"]).await;
    assert_eq!(code, 2, "{output}");
    assert!(output.contains("--trust-domain is missing"), "{output}");
    assert!(fixture.server.seen().is_empty());
}
