//! The example programs, run as a user runs them, with an agent that is not theirs to command.
//!
//! `cargo test` builds the examples before it runs this.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use axum::extract::Request;
use axum::routing::get;
use axum::{Router, ServiceExt};
use tokio::process::Command;
use tower::Layer;
use tower_spiffe::testing::{Issuer, WorkloadApi};
use tower_spiffe::{Allow, ValidateJwtSvidLayer, Validator, VerifiedSvid};

const WEB: &str = "spiffe://example.org/web";
const LIFE: Duration = Duration::from_secs(300);

fn program(name: &str) -> Command {
    let here = std::env::current_exe().unwrap();
    let built: PathBuf = here
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        built
            .with_extension(std::env::consts::EXE_EXTENSION)
            .exists(),
        "{} is not built; `cargo test` builds it, `cargo test --test programs` alone does not",
        built.display()
    );
    let mut command = Command::new(built);
    command
        .env_remove("SPIFFE_ENDPOINT_SOCKET")
        .kill_on_drop(true);
    command
}

async fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = tokio::time::timeout(Duration::from_secs(120), command.output())
        .await
        .unwrap()
        .unwrap();
    let said = [stdout, stderr]
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .concat();
    assert!(!said.contains("eyJ"), "a token was printed");
    (status.code(), said)
}

/// A server that admits `web`, on the loopback interface.
async fn server(agent: &WorkloadApi) -> String {
    async fn hello(caller: VerifiedSvid) -> String {
        format!("hello, {}", caller.spiffe_id())
    }
    let source = agent.source().await.unwrap();
    let validator = Validator::builder(source)
        .audience("reports")
        .build()
        .unwrap();
    let app = ValidateJwtSvidLayer::required(validator, Allow::id(WEB).unwrap())
        .layer(Router::new().route("/", get(hello)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        axum::serve(listener, ServiceExt::<Request>::into_make_service(app)).await
    });
    format!("http://{address}/")
}

#[tokio::test]
async fn quickstart_against_an_agent_of_somebody_elses_skips_by_name_what_it_cannot_force() {
    let agent = WorkloadApi::start("example.org").await.unwrap();
    agent.register(WEB, "", LIFE).unwrap();
    let (code, said) =
        run(program("quickstart").env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint())).await;
    assert_eq!(code, Some(0), "{said}");
    for skipped in ["expired token", "rotation"] {
        let line = said
            .lines()
            .find(|line| line.contains("skipped") && line.contains(skipped));
        assert!(line.is_some(), "{skipped}: {said}");
    }
    let line = said
        .lines()
        .find(|line| line.contains("caller not allowed"));
    assert!(line.is_some_and(|line| line.contains("403")), "{said}");
    assert!(said.contains("All of it was as it should be."), "{said}");
}

#[tokio::test]
async fn quickstart_brings_its_own_agent_and_loses_no_call_to_a_rotation() {
    let (code, said) = run(&mut program("quickstart")).await;
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "Workload API: embedded",
        "the token has expired",
        "of which 0 were lost",
        "All of it was as it should be.",
    ] {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}

#[tokio::test]
async fn quickstart_without_its_agent_says_what_is_missing() {
    let (code, said) =
        run(program("quickstart").env("SPIFFE_ENDPOINT_SOCKET", "unix:relative")).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("SPIFFE_ENDPOINT_SOCKET"), "{said}");
}

#[tokio::test]
async fn call_signs_and_tells_of_the_token_no_more_than_it_should() {
    let agent = WorkloadApi::start("example.org").await.unwrap();
    agent.register(WEB, "", LIFE).unwrap();
    let url = server(&agent).await;
    let before = agent.counts();
    let (code, said) = run(program("call")
        .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint())
        .args([
            "--audience",
            "reports",
            "--spiffe-id",
            WEB,
            "--allow-plaintext",
            "-n",
            "3",
            &url,
        ]))
    .await;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.starts_with(&format!("token: sub {WEB}, aud [\"reports\"], ")),
        "{said}"
    );
    assert_eq!(said.matches("200 OK").count(), 3, "{said}");
    assert_eq!(said.matches(&format!("hello, {WEB}")).count(), 3, "{said}");
    let asked = agent.counts().fetch_jwt_svid - before.fetch_jwt_svid;
    assert_eq!(asked, 1, "one client, one token");
}

#[tokio::test]
async fn call_fails_when_it_is_refused_and_shows_the_challenge() {
    let agent = WorkloadApi::start("example.org").await.unwrap();
    agent.register(WEB, "", LIFE).unwrap();
    let url = server(&agent).await;
    let socket = agent.endpoint();
    let call = |args: &[&str]| {
        let mut command = program("call");
        command
            .env("SPIFFE_ENDPOINT_SOCKET", &socket)
            .args(args)
            .arg(&url);
        command
    };
    let (code, said) = run(&mut call(&["--audience", "ledger", "--allow-plaintext"])).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("401") && said.contains("another audience"),
        "{said}"
    );

    // In the clear only when asked.
    let (code, said) = run(&mut call(&["--audience", "reports"])).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--allow-plaintext"), "{said}");
    assert_eq!(said.matches("call: ").count(), 1, "said once: {said}");
    assert_eq!(said.lines().count(), 2, "the token, and why not: {said}");

    // An origin that can be read in two ways gets no token, and no call without one.
    let confused = url.replace("http://", "http://user@");
    let (code, said) = run(program("call")
        .env("SPIFFE_ENDPOINT_SOCKET", &socket)
        .args(["--audience", "reports", "--allow-plaintext", &confused]))
    .await;
    assert_eq!(code, Some(1), "{said}");
    assert!(!said.contains("401"), "it was sent: {said}");
}

#[tokio::test]
async fn call_says_what_is_wrong_with_the_agent() {
    let call = |endpoint: Option<&str>| {
        let mut command = program("call");
        if let Some(endpoint) = endpoint {
            command.env("SPIFFE_ENDPOINT_SOCKET", endpoint);
        }
        command.args(["--audience", "reports", "http://localhost/"]);
        command
    };
    for (endpoint, whys) in [
        (None, ["SPIFFE_ENDPOINT_SOCKET", "is unset"]),
        (Some("unix:relative"), ["SPIFFE_ENDPOINT_SOCKET", "unix:"]),
        (
            Some("http://127.0.0.1:1"),
            ["SPIFFE_ENDPOINT_SOCKET", "tcp"],
        ),
    ] {
        let (code, said) = run(&mut call(endpoint)).await;
        assert_eq!(code, Some(1), "{said}");
        for why in whys {
            assert!(said.contains(why), "no {why:?} in: {said}");
        }
    }
}

#[tokio::test]
async fn call_explains_a_wrong_command_line() {
    for (args, why) in [
        (&["http://localhost/"][..], "--audience is missing"),
        (&["--audience", "a"][..], "the URL is missing"),
        (
            &[
                "--audience",
                "a",
                "--spiffe-id",
                "spiffe://X",
                "http://localhost/",
            ][..],
            "--spiffe-id",
        ),
        (
            &["--audience", "a", "-n", "x", "http://localhost/"][..],
            "-n x",
        ),
        (&["--colour"][..], "--colour is not known"),
    ] {
        let (code, said) = run(program("call").args(args)).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(why) && said.contains("usage: "), "{said}");
    }
}

#[tokio::test]
async fn agent_says_where_it_is_and_what_came() {
    let (code, said) = run(program("agent").args(["--for", "1", "--id", WEB])).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.starts_with("SPIFFE_ENDPOINT_SOCKET=unix:///"),
        "{said}"
    );
    assert!(said.contains("0 connections"), "{said}");
    let (code, said) = run(program("agent").args(["--id", "nobody"])).await;
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = run(program("agent").arg("--for")).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("usage: agent"), "{said}");
}

#[tokio::test]
async fn help_that_is_asked_for_is_no_mistake() {
    for name in ["agent", "agent_load", "call", "explain", "watch"] {
        let (code, said) = run(program(name).arg("--help")).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.starts_with(&format!("usage: {name} ")), "{said}");
    }
}

#[tokio::test]
async fn testing_runs_its_tests() {
    let (code, said) = run(&mut program("testing")).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("ok: ").count(), 5, "{said}");
}

/// Starts `watch --json` and gives what it says, line by line.
struct Watched {
    child: tokio::process::Child,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Watched {
    fn start(agent: &WorkloadApi, args: &[&str]) -> Self {
        use tokio::io::{AsyncBufReadExt, BufReader};
        let mut command = program("watch");
        command
            .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint())
            .arg("--json")
            .args(args)
            .stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line with this event; the ones before it are let go.
    async fn until(&mut self, event: &str) -> serde_json::Value {
        let deadline = Duration::from_secs(20);
        loop {
            let line = tokio::time::timeout(deadline, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no {event}")).unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended before {event}"));
            let told: serde_json::Value = serde_json::from_str(&line).unwrap();
            if told["event"] == event {
                return told;
            }
            if event == "ready" {
                assert_ne!(told["event"], "recovered", "from what? {line}");
            }
        }
    }
}

#[tokio::test]
async fn watch_tells_an_operator_of_each_change() {
    let agent = WorkloadApi::start("example.org").await.unwrap();
    let mut watched = Watched::start(&agent, &[]);
    let start = watched.until("start").await;
    let rows = include_str!("../examples/watch.rs").lines();
    let documented: BTreeSet<&str> = rows
        .filter_map(|line| line.strip_prefix("//! | `")?.split('`').next())
        .collect();
    let given = start.as_object().unwrap().keys().map(String::as_str);
    assert_eq!(given.collect::<BTreeSet<_>>(), documented);
    assert_eq!(start["ready"], false);
    let ready = watched.until("ready").await;
    assert_eq!(
        (&ready["ready"], &ready["connected"]),
        (&true.into(), &true.into())
    );
    let domain = &ready["trust_domains"][0];
    assert_eq!(domain["name"], "example.org");
    assert_eq!(domain["key_ids"][0], agent.issuer().signing_key_id());
    assert!(domain["updated"].is_number() && domain["error"].is_null());

    let new = agent.rotate_now();
    let bundles = watched.until("bundles").await;
    let ids = bundles["trust_domains"][0]["key_ids"].as_array().unwrap();
    assert!(ids.contains(&new.into()), "{bundles}");
    agent.withdraw();
    let withdrawn = watched.until("withdrawn").await;
    assert!(withdrawn["withdrawn"].is_string() && withdrawn["ready"] == false);
    agent.restore();
    let restored = watched.until("restored").await;
    assert!(restored["withdrawn"].is_null() && restored["ready"] == true);
    agent.restart().await.unwrap();
    let again = watched.until("reconnected").await;
    assert!(again["reconnects"].as_u64().unwrap() > 0, "{again}");

    #[cfg(unix)]
    {
        let id = watched.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-INT", &id])
            .status();
        assert!(sent.unwrap().success());
        watched.until("end").await;
        let code = watched.child.wait().await.unwrap().code();
        assert_eq!(code, Some(0));
    }
}

#[tokio::test]
async fn watch_ends_by_itself_and_says_what_is_missing() {
    let agent = WorkloadApi::start("example.org").await.unwrap();
    let mut watched = Watched::start(&agent, &["--for", "1"]);
    watched.until("end").await;
    assert_eq!(watched.child.wait().await.unwrap().code(), Some(0));

    let (code, said) = run(&mut program("watch")).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("SPIFFE_ENDPOINT_SOCKET"), "{said}");
    let (code, said) = run(program("watch").args(["--for", "soon"])).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("usage: watch"), "{said}");
}

#[tokio::test]
async fn watch_gives_one_line_for_each_change_however_a_peer_names_its_keys() {
    let agent = WorkloadApi::start("example.org").await.unwrap();
    let peer = Issuer::new("other.test").unwrap();
    let mut jwks: serde_json::Value = serde_json::from_slice(&peer.jwks()).unwrap();
    jwks["keys"][0]["kid"] = "x\u{1b}[2J\n1790000000.000 withdrawn".into();
    agent.federate_raw("other.test", jwks.to_string()).unwrap();
    let (code, said) = run(program("watch")
        .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint())
        .args(["--for", "1"]))
    .await;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("[x\\u{1b}[2J\\n1790000000.000 withdrawn]"),
        "{said}"
    );
    assert!(
        !said.contains('\u{1b}') && said.lines().count() == 3,
        "{said}"
    );
}

#[tokio::test]
async fn watch_says_nothing_where_nothing_changes() {
    let agent = WorkloadApi::start("example.org").await.unwrap();
    let (code, said) = run(program("watch")
        .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint())
        .args(["--for", "1.5"]))
    .await;
    assert_eq!(code, Some(0), "{said}");
    let events: Vec<&str> = said
        .lines()
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .collect();
    assert_eq!(events, ["start", "ready", "end"], "{said}");
    let key = agent.issuer().signing_key_id();
    assert!(said.contains(&format!("example.org [{key}]")), "{said}");
}

#[tokio::test]
async fn watch_waits_for_an_agent_that_is_not_there_and_names_a_domain_in_trouble() {
    let agent = WorkloadApi::start("example.org").await.unwrap();
    agent.stop().await;
    let mut watched = Watched::start(&agent, &[]);
    let error = watched.until("error").await;
    assert_eq!(error["revision"], 0);
    assert!(error["error"].as_str().unwrap().contains("agent.sock"));
    agent.start_again().await.unwrap();
    watched.until("recovered").await;

    agent.federate_raw("broken.test", "no JWK Set").unwrap();
    let error = watched.until("error").await;
    assert_eq!(error["trust_domains"][0]["name"], "broken.test");
    assert!(error["trust_domains"][0]["error"].is_string());
    agent.unfederate("broken.test");
    watched.until("recovered").await;
}

#[tokio::test]
async fn observability_prints_a_scrape_with_those_who_were_refused() {
    let (code, said) = run(&mut program("observability")).await;
    assert_eq!(code, Some(0), "{said}");
    for outcome in ["verified", "missing", "not-allowed"] {
        let counted = format!("spiffe_admissions_total{{outcome=\"{outcome}\"");
        assert!(said.contains(&counted), "{said}");
    }
    assert!(said.contains("spiffe_svid_fetch_duration_seconds_bucket"));
}

#[tokio::test]
async fn three_services_admit_only_whoever_calls_them_through_a_rotation_and_a_restart() {
    let (code, said) = run(&mut program("three_services")).await;
    assert_eq!(code, Some(0), "{said}");
    let ids =
        ["web", "edge", "reports", "ledger"].map(|name| format!("spiffe://example.org/{name}"));
    for hop in ids.windows(2) {
        let seen = format!("{} called {}", hop[0], hop[1]);
        assert!(said.contains(&seen), "{seen}: {said}");
    }
    assert!(said.contains("of which 0 were lost"), "{said}");
}

#[tokio::test]
async fn clients_to_copy_work_on_an_agent_of_their_own_and_on_somebody_elses() {
    let agent = WorkloadApi::start("example.org").await.unwrap();
    agent.register(WEB, "", LIFE).unwrap();
    for name in [
        "client_hyper",
        "client_reqwest",
        "client_reqwest_middleware",
        "client_tonic",
    ] {
        let (code, said) = run(&mut program(name)).await;
        assert_eq!(code, Some(0), "{name}: {said}");
        let me = "spiffe://example.org/workload";
        assert!(said.contains(me), "{name}: {said}");

        let (code, said) = run(program(name).env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint())).await;
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(said.contains(WEB), "{name}: {said}");
    }
    let (code, said) = run(&mut program("client_stack")).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("50 served, 1 call to the agent"), "{said}");
}

#[tokio::test]
async fn agent_load_finds_that_what_is_promised_of_the_load_holds() {
    let (code, said) = run(program("agent_load").arg("--quick")).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches(": holds").count(), 8, "{said}");
    let (code, said) = run(program("agent_load").args(["--audiences", "none"])).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("usage: agent_load"), "{said}");
}

#[tokio::test]
async fn e03_the_gateway_example_keeps_tokens_inside() {
    let (code, said) = run(&mut program("gateway")).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("with a token: false"), "{said}");
}
