//! `explain`, with one token and with `--jsonl`.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};
use tower_spiffe::testing::Issuer;

pub(crate) const AUDIENCE: &str = "spiffe://td.test/reports";
const SUBJECT: &str = "spiffe://td.test/web";
/// The time of the checks.
pub(crate) const NOW: i64 = 1_790_000_000;

static VECTORS: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../tests/data/jwt-svid.json")).unwrap()
});

/// Signs given header and payload texts with a given key ID.
pub(crate) struct Signer {
    issuer: &'static Issuer,
    key_id: String,
}

impl Signer {
    pub(crate) fn with_key_id(mut self, key_id: &str) -> Self {
        key_id.clone_into(&mut self.key_id);
        self
    }

    pub(crate) fn jwk(&self) -> Value {
        let mut jwks: Value = serde_json::from_slice(&self.issuer.jwks()).unwrap();
        let mut jwk = jwks["keys"][0].take();
        jwk["kid"] = json!(self.key_id);
        jwk.as_object_mut().unwrap().remove("use");
        jwk
    }

    pub(crate) fn header(&self) -> Value {
        json!({"alg": "ES256", "kid": self.key_id, "typ": "JWT"})
    }

    pub(crate) fn sign_texts(&self, header: &str, payload: &str) -> String {
        let token = self.issuer.token(SUBJECT, AUDIENCE);
        token.raw_header(header).raw_payload(payload).sign()
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_texts(&self.header().to_string(), &claims.to_string())
    }

    pub(crate) fn token(&self) -> String {
        self.sign(&claims())
    }
}

/// A signer whose key is in the bundles.
pub(crate) fn es256() -> Signer {
    static ISSUER: LazyLock<Issuer> = LazyLock::new(|| Issuer::new("td.test").unwrap());
    Signer {
        issuer: &ISSUER,
        key_id: "p256".to_owned(),
    }
}

/// A signer whose key is not in the bundles.
fn unknown_signer() -> Signer {
    static ISSUER: LazyLock<Issuer> = LazyLock::new(|| Issuer::new("td.test").unwrap());
    Signer {
        issuer: &ISSUER,
        key_id: "evil-p256".to_owned(),
    }
}

/// The claims of a valid token.
pub(crate) fn claims() -> Value {
    json!({"sub": SUBJECT, "aud": [AUDIENCE], "exp": NOW + 300, "iat": NOW})
}

/// The claims of a valid token, with one changed.
fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

pub(crate) fn run<A: AsRef<OsStr>>(args: &[A], input: &[u8]) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tower-spiffe"))
        .arg("explain")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // On a thread, because a pipe cannot hold all cases.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let ended = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let output = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (ended.status.code().unwrap(), output.concat())
}

/// A file that is removed on drop.
struct File(PathBuf);

impl File {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("explain-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn jwks() -> Value {
    json!({"keys": [es256().jwk(), {"kty": "AKP", "kid": "tomorrow"}]})
}

fn explain(more: &[&str], token: &str) -> (i32, String) {
    let (code, output) = explain_bytes(more, token.as_bytes());
    for part in token.split('.').filter(|part| part.len() >= 16) {
        assert!(
            !output.contains(&part[..16]),
            "a part of the token was printed: {output}"
        );
    }
    (code, output)
}

fn explain_bytes(more: &[&str], token: &[u8]) -> (i32, String) {
    let name = format!("{:?}", std::thread::current().id());
    let args = [&["--trust-domain", "td.test"], more].concat();
    explain_file(&name, jwks().to_string().as_bytes(), &args, token)
}

/// Explains a token with a bundle file of this content.
pub(crate) fn explain_file(
    name: &str,
    document: &[u8],
    more: &[&str],
    token: &[u8],
) -> (i32, String) {
    let file = File::new(name, document);
    let now = NOW.to_string();
    let args = [
        "--bundles",
        file.path(),
        "--audience",
        AUDIENCE,
        "--now",
        &now,
    ];
    run(&[&args, more].concat(), token)
}

#[test]
fn valid_token_passes_every_check() {
    for around in ["", "\n", "\r\n"] {
        let (code, output) = explain(&[], &format!("{}{around}", es256().token()));
        assert_eq!(code, 0, "{output}");
        assert!(
            output.contains("accepted: spiffe://td.test/web"),
            "{output}"
        );
        let checks = [
            "length",
            "form",
            "algorithm",
            "header",
            "claims",
            "exp",
            "nbf",
            "audience",
            "trust domain",
            "key",
            "key fits",
            "signature",
        ];
        for check in checks {
            assert!(
                output.contains(&format!("  ok     {check:<13} found: ")),
                "{check}: {output}"
            );
        }
        assert!(
            output.contains("element 1 (\"tomorrow\") is ignored: `kty` is neither EC nor RSA")
        );
    }
    let (code, output) = explain(&[], &format!("Bearer {}", es256().token()));
    assert!(
        code == 0 && output.contains("note:    `Bearer` before the token"),
        "{output}"
    );
}

#[test]
fn rejected_token_names_check_and_fix() {
    let signer = es256();
    let unknown = unknown_signer();
    for (token, class, check) in [
        (
            signer.sign(&claims_with("exp", json!(NOW - 40))),
            "expired",
            "exp",
        ),
        (
            signer.sign(&claims_with("nbf", json!(NOW + 40))),
            "not-yet-valid",
            "nbf",
        ),
        (
            signer.sign(&claims_with("aud", json!("other"))),
            "audience",
            "audience",
        ),
        (
            signer.sign(&claims_with("sub", json!("web"))),
            "claims",
            "claims",
        ),
        (
            signer.sign(&claims_with("sub", json!("spiffe://x/y"))),
            "trust-domain-unknown",
            "trust domain",
        ),
        (unknown.token(), "key-unknown", "key"),
        (
            unknown_signer().with_key_id("p256").token(),
            "signature",
            "signature",
        ),
        ("x.y".to_owned(), "malformed-token", "form"),
        (String::new(), "malformed-token", "form"),
        ("x".repeat(9000), "too-long", "length"),
    ] {
        let (code, output) = explain(&[], &token);
        assert_eq!(code, 1, "{output}");
        assert!(
            output.ends_with(&format!("rejected: {class}\n")),
            "{output}"
        );
        assert!(
            output.contains(&format!("  FAILED {check:<13} found: ")),
            "{output}"
        );
        assert!(
            output.contains("to fix: ") && output.contains("expected: "),
            "{output}"
        );
        assert_eq!(output.matches("FAILED").count(), 1, "{output}");
    }
    let (_, output) = explain(&[], &signer.sign(&claims_with("exp", json!(NOW - 40))));
    assert!(
        output.contains("40 s ago (now is 1790000000)") && output.contains("10 s of leeway"),
        "{output}"
    );
    let (code, _) = explain(
        &["--leeway", "41"],
        &signer.sign(&claims_with("exp", json!(NOW - 40))),
    );
    assert_eq!(code, 0);
}

#[test]
fn unreadable_claim_does_not_hide_others() {
    let signer = es256();
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    for odd in [&deep, "1e999", "\"\\ud800\""] {
        let put = |object: Value| {
            format!(
                "{},\"odd\":{odd}}}",
                &object.to_string().trim_end_matches('}')
            )
        };
        let claims = put(claims_with("n", json!(1)));
        let (code, output) = explain(
            &[],
            &signer.sign_texts(&signer.header().to_string(), &claims),
        );
        assert_eq!(code, 0, "{output}");
        assert!(
            output.contains("found: sub \"spiffe://td.test/web\", aud"),
            "{output}"
        );
        assert!(output.contains("300 s from now"), "{output}");

        let header = put(signer.header());
        let (code, output) = explain(&[], &signer.sign_texts(&header, &claims));
        assert!(
            code == 1 && output.ends_with("rejected: header\n"),
            "{output}"
        );
        assert!(
            output.contains("found: alg \"ES256\", kid \"p256\", odd "),
            "{output}"
        );
        assert!(output.len() < 3000, "{} bytes", output.len());
    }
    // A number out of range is printed as written.
    let claims = claims()
        .to_string()
        .replace(&(NOW + 300).to_string(), "1e999");
    let (code, output) = explain(
        &[],
        &signer.sign_texts(&signer.header().to_string(), &claims),
    );
    assert!(
        code == 1 && output.ends_with("rejected: claims\n"),
        "{output}"
    );
    assert!(output.contains("exp 1e999, nbf absent"), "{output}");
}

#[test]
fn binary_token_is_checked_by_its_length() {
    for (len, class, check) in [
        (3000, "malformed-token", "form"),
        (9000, "too-long", "length"),
    ] {
        let (code, output) = explain_bytes(&[], &vec![0xff; len]);
        assert_eq!(code, 1, "{output}");
        assert!(
            output.contains(&format!("  FAILED {check:<13} found: ")),
            "{output}"
        );
        assert!(
            output.ends_with(&format!("rejected: {class}\n")),
            "{output}"
        );
    }
}

#[test]
fn long_list_of_keys_is_shortened() {
    let signer = es256();
    let named = |n| es256().with_key_id(&format!("key-{n:03}")).jwk();
    let keys: Vec<Value> = (0..500).map(named).collect();
    let document = json!({"td.test": {"keys": keys}}).to_string();
    let explain =
        |token: String| explain_file("hundreds", document.as_bytes(), &[], token.as_bytes());
    let (code, output) = explain(signer.token());
    assert!(
        code == 1 && output.ends_with("rejected: key-unknown\n"),
        "{output}"
    );
    assert!(output.contains("\"key-019\" and 480 more\n"), "{output}");
    let known = es256().with_key_id("key-499").token();
    assert_eq!(explain(known).0, 0);
}

#[test]
fn each_format_is_read_and_detected() {
    let marked = {
        let mut jwk = es256().jwk();
        jwk["use"] = json!("jwt-svid");
        json!({"keys": [jwk], "spiffe_sequence": 7})
    };
    let map = json!({"td.test": jwks(), "spiffe://other.test": jwks()});
    let bundle_map = json!({"trust_domains": {"td.test": marked}});
    let token = es256().token();
    let explain = |name: &str, document: &Value, more: &[&str]| {
        explain_file(
            name,
            document.to_string().as_bytes(),
            more,
            token.as_bytes(),
        )
    };
    let td: &[&str] = &["--trust-domain", "spiffe://td.test"];
    assert_eq!(explain("a", &jwks(), td).0, 0);
    assert_eq!(explain("b", &marked, td).0, 0);
    assert_eq!(explain("c", &map, &[]).0, 0);
    assert_eq!(explain("d", &bundle_map, &[]).0, 0);
    // A SPIFFE bundle requires `use`.
    let (code, output) = explain("e", &jwks(), &[td, &["--format", "bundle"]].concat());
    assert!(
        code == 1 && output.contains("rejected: key-unknown"),
        "{output}"
    );
    for (name, document, more, why) in [
        ("f", jwks(), &[][..], "--trust-domain is missing"),
        ("g", json!({"x": 1}), &[], "the format is not clear"),
        ("h", json!([]), &[], "not a JSON object"),
        (
            "k",
            json!({"td.test": "not base64"}),
            &[],
            "the format is not clear",
        ),
        (
            "i",
            json!({"TD": jwks()}),
            &[],
            "the trust domain may have only",
        ),
        (
            "j",
            json!({"td.test": jwks(), "spiffe://td.test": jwks()}),
            &[],
            "twice",
        ),
    ] {
        let (code, output) = explain(name, &document, more);
        assert!(code == 2 && output.contains(why), "{why}: {output}");
    }
}

#[test]
fn invalid_command_line_exits_with_2() {
    for (args, why) in [
        (&[][..], "--bundles <FILE|URL>"),
        (&["--bundles", "x"], "--audience <AUD>"),
        (&["--bundles"], "a value is required"),
        (
            &["--bundles", "/nowhere/x", "--audience", "a"],
            "cannot read /nowhere/x",
        ),
        (
            &["--bundles", "x", "--audience", "a", "--leeway", "ten"],
            "'ten' for '--leeway",
        ),
        (
            &["--bundles", "x", "--audience", "a", "--now", "noon"],
            "seconds since 1970",
        ),
        (&["--format", "pem"], "jwks, bundle, map"),
        (&["--trust-domain", "A"], "'--trust-domain <TD>'"),
        (
            &["--jsonl", "--leeway", "1"],
            "'--jsonl' cannot be used with",
        ),
        (&["eyJhbGciOiJFUzI1NiJ9"], "unexpected argument"),
    ] {
        let (code, output) = run(args, b"");
        assert_eq!(code, 2, "{output}");
        assert!(output.contains(why), "{why}: {output}");
        assert!(!output.contains("eyJ"), "an argument was repeated");
    }
}

#[cfg(unix)]
#[test]
fn file_names_may_be_invalid_utf8() {
    use std::os::unix::ffi::OsStrExt as _;

    let odd = OsStr::from_bytes(b"eyJ\xff");
    let (code, output) = run(&[odd], b"");
    assert!(
        code == 2 && output.contains("unexpected argument"),
        "{output}"
    );
    assert!(!output.contains("eyJ"), "an argument was repeated");
    let args = [
        "--bundles".as_ref(),
        odd,
        "--audience".as_ref(),
        "a".as_ref(),
    ];
    let (code, output) = run::<&OsStr>(&args, b"");
    assert!(code == 2 && output.contains("cannot read eyJ"), "{output}");
}

#[test]
fn jsonl_returns_the_reason_of_every_vector() {
    let cases = VECTORS["cases"].as_array().unwrap();
    let mut lines = Vec::new();
    let mut sent = Vec::new();
    for case in cases {
        let mut line = json!({
            "bundles": VECTORS["bundles"][case["bundles"].as_str().unwrap()],
            "audience": case["audience"], "now": case["now"], "leeway": case["leeway"],
        });
        for name in ["token", "token_b64"] {
            if !case[name].is_null() {
                line[name] = case[name].clone();
            }
        }
        // Each case twice, so that the second one uses the cache.
        for _ in 0..2 {
            writeln!(lines, "{line}").unwrap();
            sent.push(case);
        }
    }
    let (code, output) = run::<&str>(&["--jsonl"], &lines);
    assert_eq!(code, 0);
    let answers: Vec<Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), sent.len());
    for (case, answer) in sent.iter().zip(&answers) {
        let expect = &case["expect"];
        assert_eq!(answer["ok"], json!(expect == "ok"), "{}", case["id"]);
        let or = case["or"]
            .as_array()
            .is_some_and(|or| or.contains(&answer["reason"]));
        assert!(
            answer["reason"] == *expect || or,
            "{}: {answer}",
            case["id"]
        );
        if expect == "ok" {
            assert_eq!(answer["spiffe_id"], case["spiffe_id"], "{}", case["id"]);
        }
    }
}

#[test]
fn invalid_line_is_reported_and_the_next_checked() {
    let good = json!({"token": es256().token(), "bundles": {"td.test": jwks()},
                      "audience": [AUDIENCE], "now": NOW, "leeway": 10});
    let with = |name: &str, value: Value| {
        let mut line = good.clone();
        line[name] = value;
        line.to_string()
    };
    let mut both = good.clone();
    both["token_b64"] = json!("AAAA");
    let odd = [
        String::new(),
        "not JSON".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        both.to_string(),
        with("audience", json!([])),
        with("audience", json!([""])),
        with("audience", Value::Null),
        with("leeway", json!(301)),
        with("leeway", json!(-1)),
        with("now", json!("noon")),
        with("bundles", json!("main")),
        with("bundles", json!({"td.test": {"keys": 7}})),
        with("bundles", json!({"TD": jwks()})),
        with("token", json!(7)),
        with("token", Value::Null),
        // The same values without their names.
        json!([good["token"], null, good["bundles"], [AUDIENCE], NOW, 10]).to_string(),
    ];
    let mut lines = Vec::new();
    for line in &odd {
        writeln!(lines, "{line}\n{good}").unwrap();
    }
    lines.extend(b"\xff\xfe\n");
    // The last line may have no newline.
    lines.extend(good.to_string().as_bytes());
    let (code, output) = run::<&str>(&["--jsonl"], &lines);
    assert_eq!(code, 0);
    assert!(!output.contains("eyJ"), "a token was printed");
    let answers: Vec<Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 2 * odd.len() + 2);
    for pair in answers.chunks(2) {
        assert_eq!(pair[0]["ok"], false);
        assert_eq!(pair[0]["reason"], "usage");
        assert!(
            pair[0]["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty())
        );
        assert_eq!(
            pair[1],
            json!({"ok": true, "reason": "ok", "spiffe_id": "spiffe://td.test/web"})
        );
    }
}

#[test]
fn line_time_is_exact_to_the_second() {
    // A double cannot represent this number.
    let far = (1_i64 << 53) + 1;
    let token = es256().sign(&claims_with("exp", json!(far)));
    let answer = |now: Value| -> Value {
        let line = json!({"token": token, "bundles": {"td.test": jwks()},
                          "audience": AUDIENCE, "now": now, "leeway": 0});
        let (code, output) = run::<&str>(&["--jsonl"], line.to_string().as_bytes());
        assert_eq!(code, 0);
        serde_json::from_str::<Value>(&output).unwrap()["reason"].clone()
    };
    assert_eq!(answer(json!(far - 1)), "ok");
    assert_eq!(answer(json!(far)), "expired");
    assert_eq!(answer(json!(1e300)), "expired");
    assert_eq!(answer(json!(-1e300)), "ok");
    assert_eq!(answer(json!(u64::MAX)), "expired");
}
