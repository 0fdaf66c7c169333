//! A malicious issuer causes a failed fetch and a clear error. Its data is never sent.

use tower_spiffe::SpiffeId;
use tower_spiffe::token::{FetchSvidReason, SvidRequest, TokenErrorReason};

use crate::support::{Answer, Bench, START, Token, request};

/// Returns the error of a request for this answer. The answer must not be sent in a header.
async fn failed(aud: &SvidRequest, answer: Answer) -> (TokenErrorReason, String) {
    let bench = Bench::with(move |_| answer.clone());
    let error = bench.cache.header(aud).await.unwrap_err();
    assert_eq!(bench.cache.try_header(aud), None);
    assert_eq!(bench.cache.stats().failures, 1);
    (error.reason(), error.to_string())
}

fn good() -> Token {
    Token::new(&request("a"), START, 300)
}

async fn unacceptable(aud: &SvidRequest, text: String, says: &str) {
    let (reason, message) = failed(aud, Answer::Text(text)).await;
    assert_eq!(reason, TokenErrorReason::Unacceptable, "{message}");
    assert!(message.contains(says), "{message}");
    assert!(!message.contains("eyJ") && message.len() < 400, "{message}");
}

#[tokio::test(start_paused = true)]
async fn token_without_lifetime_is_unacceptable() {
    let aud = request("a");
    unacceptable(
        &aud,
        Token {
            exp: None,
            ..good()
        }
        .text(),
        "`exp`",
    )
    .await;
    let (reason, _) = failed(
        &aud,
        Answer::Token(Token {
            exp: Some(i64::MIN),
            ..good()
        }),
    )
    .await;
    assert_eq!(reason, TokenErrorReason::ClockSkew);
}

#[tokio::test(start_paused = true)]
async fn expired_or_expiring_token_is_unacceptable() {
    let aud = request("a");
    use TokenErrorReason::{ClockSkew, StaleToken};
    for (exp, expected, word) in [
        (START - 1, StaleToken, "server"),
        (START, StaleToken, "server"),
        (START + 1, ClockSkew, "clock"),
    ] {
        let (reason, message) = failed(
            &aud,
            Answer::Token(Token {
                exp: Some(exp),
                ..Token::new(&aud, START - 300, 0)
            }),
        )
        .await;
        assert_eq!(reason, expected, "{exp}");
        assert!(message.contains(word), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn token_of_another_subject_is_unacceptable() {
    let id: SpiffeId = "spiffe://x/web".parse().unwrap();
    let asked = request("a").with_spiffe_id(id);
    let other = Token {
        sub: "spiffe://x/admin".into(),
        ..good()
    };
    unacceptable(&asked, other.text(), "another SPIFFE ID").await;
    let none = Token {
        sub: "admin".into(),
        ..good()
    };
    unacceptable(&request("a"), none.text(), "SPIFFE ID").await;
}

#[tokio::test(start_paused = true)]
async fn token_with_another_hint_is_unacceptable() {
    let asked = request("a").with_hint("internal").unwrap();
    unacceptable(&asked, good().text(), "another hint").await;
}

#[tokio::test(start_paused = true)]
async fn token_for_other_audiences_is_unacceptable() {
    let aud = |all: &[&str]| Token {
        aud: all.iter().map(|a| a.to_string()).collect(),
        ..good()
    };
    for other in [&["b"][..], &["a", "b"], &["A"], &["a/"], &[]] {
        let (reason, _) = failed(&request("a"), Answer::Token(aud(other))).await;
        assert_eq!(reason, TokenErrorReason::Unacceptable, "{other:?}");
    }
    let both = SvidRequest::new(["a", "b"]).unwrap();
    unacceptable(&both, aud(&["a"]).text(), "other audiences").await;
    // Another order and duplicates are equal.
    let bench = Bench::with(move |_| Answer::Token(aud(&["b", "a", "b"])));
    assert!(bench.cache.header(&both).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn malformed_token_is_unacceptable() {
    let aud = request("a");
    let text = good().text();
    unacceptable(&aud, format!("{text}\r\nx-admin: true"), "base64url").await;
    unacceptable(&aud, format!("{text}\n"), "base64url").await;
    unacceptable(&aud, format!(" {text}"), "base64url").await;
    unacceptable(&aud, text.replace('.', ","), "three non-empty parts").await;
    unacceptable(&aud, format!("{text}.{text}"), "three non-empty parts").await;
    unacceptable(&aud, String::new(), "three non-empty parts").await;
    unacceptable(&aud, "a".repeat(1 << 20), "8 KiB").await;
    let long = Token {
        aud: vec!["a".repeat(9000)],
        ..good()
    };
    unacceptable(&request(&"a".repeat(9000)), long.text(), "8 KiB").await;
}

#[tokio::test(start_paused = true)]
async fn token_with_duplicate_claims_is_unacceptable() {
    use base64::Engine;
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let header = engine.encode(r#"{"alg":"ES256","kid":"1"}"#);
    for twice in [
        format!(
            r#"{{"sub":"spiffe://x/web","sub":"spiffe://x/admin","aud":"a","exp":{}}}"#,
            START + 300
        ),
        format!(
            r#"{{"sub":"spiffe://x/web","aud":"a","aud":"b","exp":{}}}"#,
            START + 300
        ),
        format!(
            r#"{{"sub":"spiffe://x/web","aud":"a","exp":{0},"exp":{0}9}}"#,
            START + 300
        ),
    ] {
        let text = format!("{header}.{}.c2ln", engine.encode(&twice));
        unacceptable(&request("a"), text, "readable").await;
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_response_does_not_replace_a_token() {
    let bench = Bench::new();
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    bench.issuer.then(|_| Answer::Text("a.b.c\r\n".into()));
    bench.at(crate::support::secs(200)).await;
    for _ in 0..10 {
        tokio::time::sleep(crate::support::secs(5)).await;
        assert_eq!(bench.cache.header(&aud).await.unwrap(), first);
    }
    let last = bench.cache.snapshot_of(&aud).unwrap().last_error.unwrap();
    assert_eq!(
        last.fetch_error().unwrap().reason(),
        FetchSvidReason::Unacceptable
    );
}

#[tokio::test(start_paused = true)]
async fn error_names_a_bounded_audience() {
    let long = "x".repeat(5000);
    let all = (0..20).map(|n| format!("{n}{long}"));
    let aud = SvidRequest::new(all).unwrap();
    let (_, message) = failed(&aud, Answer::Fail(FetchSvidReason::Other)).await;
    assert!(
        message.contains("and 17 more") && message.len() < 800,
        "{}",
        message.len()
    );
}
