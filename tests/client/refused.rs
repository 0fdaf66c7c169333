//! What a service that refuses a token makes of it.

use crate::support::{Answer, Bench, Token, millis, request, secs, settle};

/// The fetch that was under way says nothing about a refusal that came after it began.
#[tokio::test(start_paused = true)]
async fn rule_08_a_fetch_that_began_before_the_refusal_is_no_answer_to_it() {
    let mut kept = None;
    let bench = Bench::with(move |call| {
        // The agent gives its cached token once more, slowly; then a new one.
        let again = kept.get_or_insert_with(|| Token::new(call.request, call.now, 300));
        match call.number {
            1 => Answer::Token(again.clone()),
            2 => Answer::Token(again.clone()).after(secs(1)),
            _ => call.fresh(300),
        }
    });
    let aud = request("a");
    let first = bench.cache.header(&aud).await.unwrap();
    bench.at(secs(200)).await;
    assert_eq!(bench.cache.try_header(&aud), Some(first.clone()));
    settle().await;
    assert_eq!(bench.desk.calls(), 2);
    tokio::time::sleep(millis(500)).await;
    assert!(bench.cache.report_refused(&aud, &first));
    tokio::time::sleep(millis(600)).await;
    // The second call has ended, with the refused token; the next request has the issuer asked.
    assert_ne!(bench.cache.header(&aud).await.unwrap(), first);
    assert_eq!(bench.desk.calls(), 3);
    // An issuer that is asked after the refusal, and stands by its token, is believed.
    let current = bench.cache.header(&aud).await.unwrap();
    let text = current.to_str().unwrap()["Bearer ".len()..].to_owned();
    bench.desk.then(move |_| Answer::Text(text.clone()));
    tokio::time::sleep(secs(11)).await;
    assert!(bench.cache.report_refused(&aud, &current));
    for _ in 0..80 {
        assert_eq!(bench.cache.header(&aud).await.unwrap(), current);
        tokio::time::sleep(millis(100)).await;
    }
    assert_eq!(bench.desk.calls(), 4);
}
