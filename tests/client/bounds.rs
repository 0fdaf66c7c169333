//! How much the cache keeps, and what it warns of.

use std::sync::Arc;
use std::time::Duration;

use tower_spiffe::FetchSvidReason;

use crate::support::{Answer, Bench, request};

#[tokio::test(start_paused = true)]
async fn rule_14_one_audience_that_fails_among_others_that_work_is_one_warning() {
    let log = Arc::new(crate::log::Captured::default());
    let _guard = log.clone().install();
    let bench = Bench::with(|call| match &*call.request.audiences()[0] {
        "bad" => Answer::Fail(FetchSvidReason::Unavailable),
        _ => call.fresh(300),
    });
    for n in 0..6 {
        bench.cache.header(&request("bad")).await.unwrap_err();
        let good = request(&format!("good-{n}"));
        bench.cache.header(&good).await.unwrap();
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    assert_eq!(
        log.levels("fetching a JWT-SVID failed"),
        ["WARN", "DEBUG", "DEBUG", "DEBUG", "DEBUG", "DEBUG"]
    );
}
